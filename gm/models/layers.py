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

from gm.kernels import layers as kernels
from gm.kernels.convolution import convolution
from gm.kernels.library import library

# Per device, the layers whose plain operator of the framework is slower there than what stands in for it below, for the
# step of training as a whole: forward and backward. Products with a bias stand in where there is no step (``Purpose``).
# Each is one Cell for all layers alike (``cache``): so it compiles in half the time.
STAND_INS = {"CPU": ("linear", "transformer_block")}
# The same by kernels of our own, if this machine can compile them.
KERNELS = {
    "CPU": (
        "attention",
        "convolution",
        "layer_norm",
        "group_norm",
        "silu",
        "gated_gelu",
        "channel_shift",
        "upsample",
        "square_sums",
        "update",
    )
}


class Purpose:
    """What the layers that are built now are for; ``gm.models.build`` sets it."""

    inference = False  # they are called, and never differentiated


def stands_in(layer: str) -> bool:
    """Whether a layer that is built now shall take its stand-in, not the plain operator."""
    device = ms.get_context("device_target")
    return layer in STAND_INS.get(device, ()) or (layer in KERNELS.get(device, ()) and library() is not None)


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


class Unweighted(nn.Cell):
    """A layer without weights that may have a ``kernel``, which takes float32 only."""

    def __init__(self, name: str, kernel: Callable[[], nn.Cell]):
        super().__init__()
        self.kernel = kernel() if stands_in(name) else None

    def by_itself(self) -> None:
        """Compute by MindSpore's operators, which take any type."""
        del self.kernel
        self.kernel = None


def generalize(network: nn.Cell) -> None:
    """Make the layers of ``network``, which compute in float32, compute in the type of what they are given.

    Their weights may then be of another type, or a part of the whole ones. Which it is, is a matter of the layer's
    class and not of a branch, so that the usual case has neither branches nor casts, which take long to compile.
    """
    for _, cell in network.cells_and_names():
        if isinstance(cell, (Sharing, Unweighted)):
            cell.by_itself()
        general = getattr(type(cell), "general", None)
        if general not in (None, type(cell)):
            object.__setattr__(cell, "__class__", general)
            if hasattr(cell, "weight"):
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
    """Convolution with a square kernel; weight (out, in, k, k). ``padding``: (top, bottom, left, right) or one int."""

    general: type[nn.Cell]

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
        keeps_size = kernel_size % 2 == 1 and (stride, padding) == (1, kernel_size // 2)
        self.kernel = convolution() if keeps_size and stands_in("convolution") else None

    def construct(self, x: Tensor) -> Tensor:
        if self.kernel is not None:
            return self.kernel(x, self.weight, self.bias)
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
    """Group normalisation over (C/groups, H, W), then scale and shift per channel, of (B, C, H, W).

    With ``silu`` a SiLU follows, in the same kernel where there is one.
    """

    general: type[nn.Cell]

    def __init__(self, groups: int, channels: int, eps: float = 1e-5, silu: bool = False):
        super().__init__()
        self.groups, self.eps, self.silu = groups, eps, silu
        self.weight = Parameter(Tensor(np.ones(channels, np.float32)))
        self.bias = Parameter(Tensor(np.zeros(channels, np.float32)))
        self.kernel = kernels.group_norm(groups, eps, silu) if stands_in("group_norm") else None

    def construct(self, x: Tensor) -> Tensor:
        return self.normed(x, self.weight, self.bias)

    def normed(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if self.kernel is not None:
            return self.kernel(x, weight, bias)[0]
        normed = ops.group_norm(x, self.groups, weight, bias, self.eps)
        return ops.silu(normed) if self.silu else normed


class GeneralGroupNorm(GroupNorm):
    """``GroupNorm`` of any type, computed in float32."""

    def construct(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.astype(ms.float32), self.bias.astype(ms.float32)
        return self.normed(x.astype(ms.float32), weight, bias).astype(x.dtype)


GroupNorm.general = GeneralGroupNorm


def row_norm(eps: float) -> nn.Cell:
    """x (..., C), weight (C,), bias (C,) -> normalised over the last axis, scaled and shifted: the first of a tuple."""
    if stands_in("layer_norm"):
        return kernels.layer_norm(eps)
    return P.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=eps)


class LayerNorm(nn.Cell):
    """Normalisation over the last axis, then scale and shift."""

    general: type[nn.Cell]
    eps = 1e-5

    def __init__(self, width: int, eps: float = eps):
        super().__init__()
        self.weight = Parameter(Tensor(np.ones(width, np.float32)))
        self.bias = Parameter(Tensor(np.zeros(width, np.float32)))
        self.norm = row_norm(eps)

    def construct(self, x: Tensor) -> Tensor:
        return self.norm(x, self.weight, self.bias)[0]


class GeneralLayerNorm(LayerNorm):
    """``LayerNorm`` of any type, computed in float32."""

    def construct(self, x: Tensor) -> Tensor:
        out = self.norm(x.astype(ms.float32), self.weight.astype(ms.float32), self.bias.astype(ms.float32))[0]
        return out.astype(x.dtype)


LayerNorm.general = GeneralLayerNorm


class GatedGELU(Unweighted):
    """``value * gelu(gate)`` of one tensor (..., 2C) split in two."""

    def __init__(self):
        super().__init__("gated_gelu", kernels.gated_gelu)

    def construct(self, x: Tensor) -> Tensor:
        if self.kernel is not None:
            return self.kernel(x)
        value, gate = ops.split(x, x.shape[-1] // 2, axis=-1)
        return value * gelu(gate)


class Embedding(nn.Cell):
    """Rows of ``weight`` (count, width) by index."""

    def __init__(self, count: int, width: int):
        super().__init__()
        self.weight = Initializer.normal((count, width), std=0.02)

    def construct(self, indices: Tensor) -> Tensor:
        return ops.gather(self.weight, indices, 0)


class SiLU(Unweighted):
    """``x * sigmoid(x)``."""

    def __init__(self):
        super().__init__("silu", kernels.silu)

    def construct(self, x: Tensor) -> Tensor:
        return ops.silu(x) if self.kernel is None else self.kernel(x)


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


class ChannelShift(Unweighted):
    """(B, C, H, W) and (B, C) -> (B, C, H, W): a number added to all of a channel."""

    def __init__(self):
        super().__init__("channel_shift", kernels.channel_shift)

    def construct(self, x: Tensor, shift: Tensor) -> Tensor:
        if self.kernel is not None:
            return self.kernel(x, shift)
        return x + shift.reshape(shift.shape + (1, 1))


class UpsampleNearest(Unweighted):
    """Double height and width by repetition: (B, C, H, W) -> (B, C, 2 H, 2 W)."""

    def __init__(self):
        super().__init__("upsample", kernels.upsample)

    def construct(self, x: Tensor) -> Tensor:
        if self.kernel is not None:
            return self.kernel(x)
        batch, channels, height, width = x.shape
        spaced = x.reshape(batch, channels, height, 1, width, 1)
        spread = ops.broadcast_to(spaced, (batch, channels, height, 2, width, 2))
        return spread.reshape(batch, channels, 2 * height, 2 * width)


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
