"""The few layers every network is made of, with the parameter names of the original checkpoints (weight, bias).

Each picks the formulation that measured fastest per device; ``docs/performance.md`` says what was tried.
They compute in float32; ``generalize`` makes them compute in the dtype of the tensor they take, norms in float32 still.
``gm.models.precision`` says which dtype that is. Pictures and latents are (B, C, H, W), token states (B, N, C).
"""

import math
from collections.abc import Callable
from functools import cache

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer
from mindspore.ops import operations as P

from gm.models.batch_norms import group_norm_by_batch
from gm.models.row_convolution import row_convolution

# Per device, the layers whose plain operator of the framework is slower there than what stands in for it below, for the
# step of training as a whole: forward and backward. Products with a bias stand in where there is no step (``Purpose``).
# Each is one Cell for all layers alike (``cache``): so it compiles in half the time.
STAND_INS = {
    "CPU": (
        "linear",
        "convolution",
        "group_norm",
        "silu",
        "gated_gelu",
        "shift",
        "upsample",
        "transformer_block",
        "square_sum",
        "joint_update",
    )
}


class Purpose:
    """What the layers that are built now are for; ``gm.models.build`` sets it."""

    inference = False  # they are called, and never differentiated


def stands_in(layer: str) -> bool:
    """Whether a layer that is built now shall take its stand-in, not the plain operator."""
    return layer in STAND_INS.get(ms.get_context("device_target"), ())


class Initializer:
    """Draws initial values in the order the layers are built; with no generator they are zeros, for a file to fill.

    Under ``no_init_parameters`` such zeros take no memory until a file or a first call brings values.
    """

    current: np.random.Generator | None = None

    @classmethod
    def uniform(cls, shape: tuple[int, ...], fan_in: int) -> Parameter:
        """Within +-1/sqrt(fan_in), as torch begins Linear and Conv2d."""
        bound = 1.0 / math.sqrt(fan_in)
        return cls._parameter(shape, lambda rng: rng.uniform(-bound, bound, shape))

    @classmethod
    def normal(cls, shape: tuple[int, ...], std: float) -> Parameter:
        """Gaussian, as CLIP begins its embeddings."""
        return cls._parameter(shape, lambda rng: rng.normal(0.0, std, shape))

    @classmethod
    def _parameter(cls, shape: tuple[int, ...], draw: Callable[[np.random.Generator], np.ndarray]) -> Parameter:
        if cls.current is None:
            return Parameter(initializer("zeros", shape, ms.float32))
        return Parameter(Tensor(draw(cls.current).astype(np.float32)))


def operand(x: Tensor, dtype: ms.Type, rounding: ms.Type | None) -> Tensor:
    """``x`` in ``dtype``, its values first rounded to the narrower type ``rounding``, if any."""
    if rounding is not None:
        x = x.astype(rounding)
    return x.astype(dtype)


class Sharing(nn.Cell):
    """A block that may have ``shared``, a Cell without weights that computes all blocks alike from plain weights."""

    def __init__(self):
        super().__init__()
        self.shared = None

    def by_itself(self) -> None:
        """Compute with the block's own layers."""
        del self.shared
        self.shared = None


def generalize(network: nn.Cell) -> None:
    """Make the layers of ``network``, which compute in float32, compute in the type of what they are given.

    Their weights may then be of another type, or a part of the whole ones. Which it is, is a matter of the layer's
    class and not of a branch, so that the usual case has neither branches nor casts, which take long to compile.
    """
    for _, cell in network.cells_and_names():
        if isinstance(cell, Sharing):
            cell.by_itself()
        general = getattr(type(cell), "general", None)
        if general not in (None, type(cell)):
            object.__setattr__(cell, "__class__", general)
            cell.whole = None  # what its weight passes first, where a device keeps only a part of it


class _FusedLinear(nn.Cell):
    """``x @ weight.T + bias`` by one kernel, which MindSpore (2.8 to 2.10) has for the CPU without a function for it.

    It has no gradient.
    """

    def __init__(self):
        super().__init__()
        self.fused = ops.Primitive("FusedMatMulBiasAdd")
        for attribute, value in {"with_bias_add": True, "transpose_a": False, "transpose_b": True}.items():
            self.fused.add_prim_attr(attribute, value)

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.fused(x, weight, bias, False, True)


_fused_linear = cache(_FusedLinear)


class Linear(nn.Cell):
    """``x @ weight.T + bias``: (rows, in) -> (rows, out); weight (out, in)."""

    general: type[nn.Cell]

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = Initializer.uniform((out_features, in_features), in_features)
        self.bias = Initializer.uniform((out_features,), in_features) if bias else None
        self.matmul = P.MatMul(transpose_b=True)
        self.bias_add = P.BiasAdd()
        self.fused = _fused_linear() if Purpose.inference and stands_in("linear") else None

    def construct(self, x: Tensor) -> Tensor:
        if self.fused is not None:
            return self.fused(x, self.weight, self.bias)
        return self.bias_add(self.matmul(x, self.weight), self.bias)


class Projection(Linear):
    """``Linear`` without a bias."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def construct(self, x: Tensor) -> Tensor:
        return self.matmul(x, self.weight)


class GeneralLinear(Linear):
    """``Linear`` and ``Projection`` in the type of ``x``."""

    rounding: ms.Type | None = None

    def construct(self, x: Tensor) -> Tensor:
        weight = self.weight if self.whole is None else self.whole(self.weight.astype(x.dtype))
        out = self.matmul(operand(x, x.dtype, self.rounding), operand(weight, x.dtype, self.rounding))
        if self.bias is not None:
            out = self.bias_add(out, operand(self.bias, x.dtype, self.rounding))
        return operand(out, x.dtype, self.rounding)


Linear.general = GeneralLinear


class Conv2d(nn.Cell):
    """Convolution with a square kernel; weight (out, in, k, k). ``padding``: (top, bottom, left, right) or one int.

    Of size 3 on ``x`` (B, C, H, W) less than ``large`` it may be one product of matrices, if its channels are neither
    so few that gathering them takes longer, nor so many that preparing the kernels does. One picture alone is one
    product anyway.
    """

    general: type[nn.Cell]
    large = 2**18  # numbers; nine times as many are gathered
    fewest, most = 16, 2**15  # channels it takes, and times those it makes

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | tuple[int, int, int, int] = 0,
    ):
        super().__init__()
        fan_in = in_channels * kernel_size * kernel_size
        self.weight = Initializer.uniform((out_channels, in_channels, kernel_size, kernel_size), fan_in)
        self.bias = Initializer.uniform((out_channels,), fan_in)
        self.conv = P.Conv2D(out_channels, kernel_size, pad_mode="pad", pad=padding, stride=stride)
        self.bias_add = P.BiasAdd()
        self.stands_in = (
            stands_in("convolution")
            and (kernel_size, stride, padding) == (3, 1, 1)
            and in_channels >= self.fewest
            and in_channels * out_channels <= self.most
        )
        if self.stands_in:
            self.by_rows = row_convolution()
        self.fused = _fused_linear() if Purpose.inference and stands_in("linear") else None

    def construct(self, x: Tensor) -> Tensor:
        if self.stands_in and x.shape[0] > 1 and x.shape[0] * x.shape[1] * x.shape[2] * x.shape[3] < self.large:
            if self.fused is not None:
                rows = self.fused(self.by_rows.gathered(x), self.by_rows.kernels(self.weight), self.bias)
                return self.by_rows.pictures(rows, x.shape)
            return self.bias_add(self.by_rows(x, self.weight)[0], self.bias)
        return self.bias_add(self.conv(x, self.weight), self.bias)


class GeneralConv2d(Conv2d):
    """``Conv2d`` in the type of ``x``."""

    rounding: ms.Type | None = None

    def construct(self, x: Tensor) -> Tensor:
        weight = self.weight if self.whole is None else self.whole(self.weight.astype(x.dtype))
        out = self.conv(operand(x, x.dtype, self.rounding), operand(weight, x.dtype, self.rounding))
        out = self.bias_add(out, operand(self.bias, x.dtype, self.rounding))
        return operand(out, x.dtype, self.rounding)


Conv2d.general = GeneralConv2d


class GroupNorm(nn.Cell):
    """Group normalisation over (C/groups, H, W), then scale and shift per channel, of (B, C, H, W)."""

    general: type[nn.Cell]
    large = 2**13  # numbers, from which on two operators take less than the one

    def __init__(self, groups: int, channels: int, eps: float = 1e-5):
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = Parameter(Tensor(np.ones(channels, np.float32)))
        self.bias = Parameter(Tensor(np.zeros(channels, np.float32)))
        self.by_batch = group_norm_by_batch(groups, eps) if stands_in("group_norm") else None

    def construct(self, x: Tensor) -> Tensor:
        return self.normed(x, self.weight, self.bias)

    def normed(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if self.by_batch is None or x.shape[0] * x.shape[1] * x.shape[2] * x.shape[3] < self.large:
            return ops.group_norm(x, self.groups, weight, bias, self.eps)
        return self.by_batch(x, weight, bias)


class GeneralGroupNorm(GroupNorm):
    """``GroupNorm`` of any type, computed in float32."""

    def construct(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.astype(ms.float32), self.bias.astype(ms.float32)
        return self.normed(x.astype(ms.float32), weight, bias).astype(x.dtype)


GroupNorm.general = GeneralGroupNorm


class LayerNorm(nn.Cell):
    """Normalisation over the last axis, then scale and shift."""

    general: type[nn.Cell]
    eps = 1e-5

    def __init__(self, width: int, eps: float = eps):
        super().__init__()
        self.weight = Parameter(Tensor(np.ones(width, np.float32)))
        self.bias = Parameter(Tensor(np.zeros(width, np.float32)))
        self.norm = P.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=eps)

    def construct(self, x: Tensor) -> Tensor:
        return self.norm(x, self.weight, self.bias)[0]


class GeneralLayerNorm(LayerNorm):
    """``LayerNorm`` of any type, computed in float32."""

    def construct(self, x: Tensor) -> Tensor:
        out = self.norm(x.astype(ms.float32), self.weight.astype(ms.float32), self.bias.astype(ms.float32))[0]
        return out.astype(x.dtype)


LayerNorm.general = GeneralLayerNorm


class GatedGELU(nn.Cell):
    """``value * gelu(gate)`` of one tensor (..., 2C) split in two."""

    def construct(self, x: Tensor) -> Tensor:
        value, gate = ops.split(x, x.shape[-1] // 2, axis=-1)
        return value * gelu(gate)


class _OwnGatedGELU(nn.Cell):
    """The same with its gradient written out: MindSpore's derives the error function by a power, which is slow on CPU.

    Returns beside the result what the backward pass is made of.
    """

    def __init__(self):
        super().__init__()
        self.split, self.join = P.Split(-1, 2), P.Concat(-1)
        self.mul, self.add, self.erf, self.exp = P.Mul(), P.Add(), P.Erf(), P.Exp()

    def construct(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        value, gate = self.split(x)
        below = self.add(self.mul(self.erf(self.mul(gate, 0.7071067811865476)), 0.5), 0.5)
        activated = self.mul(gate, below)
        return self.mul(value, activated), value, gate, below, activated

    def bprop(
        self,
        x: Tensor,
        out: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
        gradients: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    ) -> tuple[Tensor]:
        _, value, gate, below, activated = out
        gradient = gradients[0]
        density = self.mul(self.exp(self.mul(self.mul(gate, gate), -0.5)), 0.3989422804014327)
        slope = self.add(below, self.mul(gate, density))
        return (self.join((self.mul(gradient, activated), self.mul(self.mul(gradient, value), slope))),)


_own_gated_gelu = cache(_OwnGatedGELU)


class _GatedGELUOnCPU(nn.Cell):
    """``GatedGELU`` by its own gradient."""

    def __init__(self):
        super().__init__()
        self.own = _own_gated_gelu()

    def construct(self, x: Tensor) -> Tensor:
        return self.own(x)[0]


def gated_gelu() -> nn.Cell:
    """``GatedGELU``, or what stands in for it on this device."""
    return _GatedGELUOnCPU() if stands_in("gated_gelu") else GatedGELU()


class Embedding(nn.Cell):
    """Rows of ``weight`` (count, width) by index."""

    def __init__(self, count: int, width: int):
        super().__init__()
        self.weight = Initializer.normal((count, width), std=0.02)

    def construct(self, indices: Tensor) -> Tensor:
        return ops.gather(self.weight, indices, 0)


class _OwnSiLU(nn.Cell):
    """``x * sigmoid(x)`` and the sigmoid, which MindSpore's gradient on the CPU would compute again."""

    def __init__(self):
        super().__init__()
        self.sigmoid, self.mul, self.add, self.sub = P.Sigmoid(), P.Mul(), P.Add(), P.Sub()

    def construct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        open_to = self.sigmoid(x)
        return self.mul(x, open_to), open_to

    def bprop(self, x: Tensor, out: tuple[Tensor, Tensor], gradients: tuple[Tensor, Tensor]) -> tuple[Tensor]:
        result, open_to = out
        return (self.mul(gradients[0], self.add(open_to, self.sub(result, self.mul(result, open_to)))),)


_own_silu = cache(_OwnSiLU)


class SiLU(nn.Cell):
    """``x * sigmoid(x)``."""

    def __init__(self):
        super().__init__()
        self.own = _own_silu() if stands_in("silu") else None

    def construct(self, x: Tensor) -> Tensor:
        return ops.silu(x) if self.own is None else self.own(x)[0]


class Identity(nn.Cell):
    """Keeps the numbering of a list where the original network has a layer without parameters (dropout)."""

    def construct(self, x: Tensor) -> Tensor:
        return x


def zeroed(layer: nn.Cell) -> nn.Cell:
    """A layer that begins at zero, so that the residual branch it ends begins as nothing (``zero_module``)."""
    for parameter in layer.get_parameters():
        parameter.set_data(initializer("zeros", parameter.shape, parameter.dtype))
    return layer


def gelu(x: Tensor) -> Tensor:
    """The exact GELU, ``x/2 (1 + erf(x/sqrt 2))``."""
    return 0.5 * x * (1.0 + ops.erf(x * 0.7071067811865476))


def quick_gelu(x: Tensor) -> Tensor:
    """``x * sigmoid(1.702 x)``, as OpenAI's CLIP was trained."""
    return x * ops.sigmoid(1.702 * x)


class ChannelShift(nn.Cell):
    """(B, C, H, W) and (B, C) -> (B, C, H, W): a number added to all of a channel."""

    def construct(self, x: Tensor, shift: Tensor) -> Tensor:
        return x + shift.reshape(shift.shape + (1, 1))


class _ChannelShiftOnCPU(nn.Cell):
    """The same as a bias: adding what has to be spread takes twice as long there, and its gradient six times."""

    def __init__(self):
        super().__init__()
        self.bias_add = P.BiasAdd()

    def construct(self, x: Tensor, shift: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        rows = x.reshape(1, batch * channels, height * width, 1)
        return self.bias_add(rows, shift.reshape(batch * channels)).reshape(x.shape)


_channel_shift_on_cpu = cache(_ChannelShiftOnCPU)


def channel_shift() -> nn.Cell:
    """``ChannelShift``, or what stands in for it on this device."""
    return _channel_shift_on_cpu() if stands_in("shift") else ChannelShift()


def sinusoidal_embedding(values: Tensor, width: int, max_period: float = 10000.0) -> Tensor:
    """Cosines then sines of ``values`` (N,) at ``width``/2 geometric frequencies -> (N, width).

    As in the original SDXL code (cosine first, no shift of the frequencies).
    """
    half = width // 2
    # The exponents are rounded to float32 as there: the angle of a size of 4000 pixels shows it in the fourth decimal.
    exponents = np.float32(-math.log(max_period)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequencies = Tensor(np.exp(exponents.astype(np.float64)), ms.float32)
    angles = values.astype(ms.float32).reshape(-1, 1) * frequencies.reshape(1, -1)
    return ops.concat((ops.cos(angles), ops.sin(angles)), axis=1)
