"""Layers by kernels of our own, with their gradients: Cells without weights, one for all layers alike."""

from functools import cache

import mindspore as ms
from mindspore import Tensor, nn

from gm.kernels.operators import Shapes, operator


def _normed_rows(x, *rest):
    return x, x[:-1], x[:-1]


def _norm_grad(dy, x, weight, *rest):
    return x, weight, weight


def _gated(x):
    return [*x[:-1], x[-1] // 2]


def _like_second(dy, x):
    return x


def _like_first(x, *rest):
    return x


def _doubled(x):
    return [x[0], x[1], 2 * x[2], 2 * x[3]]


def _halved(dy):
    return [dy[0], dy[1], dy[2] // 2, dy[3] // 2]


def _planes(dy):
    return dy[:2]


class LayerNorm(nn.Cell):
    """x (..., C), weight (C,), bias (C,) -> y (..., C), and what the backward pass takes."""

    def __init__(self, eps: float):
        super().__init__()
        self.eps = Tensor([eps], ms.float32)
        self.forward = operator("layer_norm", 3, _normed_rows)
        self.backward = operator("layer_norm_grad", 3, _norm_grad)

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.forward(x, weight, bias, self.eps)

    def bprop(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        out: tuple[Tensor, Tensor, Tensor],
        gradients: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.backward(gradients[0], x, weight, out[1], out[2])


class GroupNorm(nn.Cell):
    """x (B, C, H, W), weight (C,), bias (C,) -> y (B, C, H, W), and what the backward pass takes. A SiLU may follow."""

    def __init__(self, groups: int, eps: float, silu: bool):
        super().__init__()
        self.eps = Tensor([eps], ms.float32)
        name = "group_norm_silu" if silu else "group_norm"

        def shapes(x, *rest):
            return x, [x[0], groups], [x[0], groups]

        self.forward = operator(name, 3, shapes)
        self.backward = operator(f"{name}_grad", 3, _norm_grad)

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.forward(x, weight, bias, self.eps)

    def bprop(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        out: tuple[Tensor, Tensor, Tensor],
        gradients: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.backward(gradients[0], x, weight, bias, out[1], out[2])


class Activation(nn.Cell):
    """The kernel ``name`` of one tensor; ``shape`` of that one's shape is the result's."""

    def __init__(self, name: str, shape: Shapes):
        super().__init__()
        self.forward = operator(name, 1, shape)
        self.backward = operator(f"{name}_grad", 1, _like_second)

    def construct(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def bprop(self, x: Tensor, out: Tensor, gradient: Tensor) -> tuple[Tensor]:
        return (self.backward(gradient, x),)


class Upsample(nn.Cell):
    """(B, C, H, W) -> (B, C, 2 H, 2 W): every pixel twice each way."""

    def __init__(self):
        super().__init__()
        self.forward = operator("upsample", 1, _doubled)
        self.backward = operator("upsample_grad", 1, _halved)

    def construct(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def bprop(self, x: Tensor, out: Tensor, gradient: Tensor) -> tuple[Tensor]:
        return (self.backward(gradient),)


class ChannelShift(nn.Cell):
    """(B, C, H, W) and (B, C) -> (B, C, H, W): a number added to all of a channel."""

    def __init__(self):
        super().__init__()
        self.forward = operator("channel_shift", 1, _like_first)
        self.backward = operator("channel_shift_grad", 1, _planes)

    def construct(self, x: Tensor, shift: Tensor) -> Tensor:
        return self.forward(x, shift)

    def bprop(self, x: Tensor, shift: Tensor, out: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, self.backward(gradient)


layer_norm = cache(LayerNorm)
group_norm = cache(GroupNorm)
upsample = cache(Upsample)
channel_shift = cache(ChannelShift)


@cache
def gated_gelu() -> nn.Cell:
    """(..., 2 C) -> (..., C): the left half times the exact GELU of the right one."""
    return Activation("gated_gelu", _gated)


@cache
def silu() -> nn.Cell:
    """``x * sigmoid(x)``."""
    return Activation("silu", _like_first)
