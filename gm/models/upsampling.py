"""Pictures doubled in size by repetition, as every upsampling layer of the family does it."""

import math
from functools import cache

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops import operations as P

from gm.models.layers import stands_in


class UpsampleNearest(nn.Cell):
    """Double height and width by repetition: (B, C, H, W) -> (B, C, 2 H, 2 W)."""

    def construct(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        spaced = x.reshape(batch, channels, height, 1, width, 1)
        spread = ops.broadcast_to(spaced, (batch, channels, height, 2, width, 2))
        return spread.reshape(batch, channels, 2 * height, 2 * width)


@ops.constexpr
def _repeats(height: int, width: int, half: bool) -> Tensor:
    """(H W, 4 H W) of zeros and ones, by which a row of H W pixels is multiplied to be doubled both ways."""
    down, right = (np.repeat(np.eye(size), 2, axis=1) for size in (height, width))
    return Tensor(np.kron(down, right).astype(np.float16 if half else np.float32))


@ops.constexpr
def _stretches(width: int, half: bool) -> Tensor:
    """(W', 2 W') of zeros and ones; rows of W pixels are doubled in parts of W', which divides W."""
    part = math.gcd(width, 32)
    right = np.repeat(np.eye(part if part > 2 else width), 2, axis=1)
    return Tensor(right.astype(np.float16 if half else np.float32))


class _UpsampleNearestOnCPU(nn.Cell):
    """The same by a product with ones and zeros: what copies single numbers is slow there."""

    small = 64  # pixels

    def __init__(self):
        super().__init__()
        self.matmul, self.gather, self.reshape = P.MatMul(), P.MatMul(transpose_b=True), P.Reshape()
        self.tile, self.split, self.add = P.Tile(), P.Split(1, 2), P.Add()

    def construct(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        shape, half = (batch, channels, 2 * height, 2 * width), x.dtype == ms.float16
        if height * width <= self.small:
            pixels = self.reshape(x, (batch * channels, height * width))
            return self.reshape(self.matmul(pixels, _repeats(height, width, half)), shape)
        stretches = _stretches(width, half)
        wide = self.matmul(self.reshape(x, (-1, stretches.shape[0])), stretches)
        return self.reshape(self.tile(self.reshape(wide, (-1, 1, 2 * width)), (1, 2, 1)), shape)

    def bprop(self, x: Tensor, out: Tensor, gradient: Tensor) -> tuple[Tensor]:
        batch, channels, height, width = x.shape
        half = x.dtype == ms.float16
        if height * width <= self.small:
            pixels = self.reshape(gradient, (batch * channels, 4 * height * width))
            return (self.reshape(self.gather(pixels, _repeats(height, width, half)), x.shape),)
        stretches = _stretches(width, half)
        upper, lower = self.split(self.reshape(gradient, (-1, 2, 2 * width)))
        wide = self.reshape(self.add(upper, lower), (-1, stretches.shape[1]))
        return (self.reshape(self.gather(wide, stretches), x.shape),)


_upsample_nearest_on_cpu = cache(_UpsampleNearestOnCPU)


def upsample_nearest() -> nn.Cell:
    """``UpsampleNearest``, or what stands in for it on this device."""
    return _upsample_nearest_on_cpu() if stands_in("upsample") else UpsampleNearest()
