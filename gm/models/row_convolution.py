"""A 3x3 convolution of small pictures as one product of matrices, for devices whose own is slow there.

The pixels of a picture become rows of its channels. Each place of the result gathers the nine rows under its kernel,
side by side, and one product with the kernels gives its row of the result. The gradient by the pictures is the same
with the kernels turned around; that by the kernels is a product of the rows once gathered. What lies outside of the
picture is a row that is not there, which ``EmbeddingLookup`` fills with zeros.
"""

from functools import cache

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops import operations as P

TAPS = 9


class RowConvolution(nn.Cell):
    """(B, C, H, W), kernels (out, C, 3, 3) -> ((B, out, H, W), the gathered rows, the kernels as rows).

    Stride 1, padding 1. All but the first result are what the backward pass is made of.
    """

    def __init__(self):
        super().__init__()
        self.transpose, self.reshape, self.lookup = P.Transpose(), P.Reshape(), P.EmbeddingLookup()
        # Else MindSpore knows no types of the gradients of a network: they might be sparse.
        self.lookup.add_prim_attr("bprop_return_sparse", False)
        self.matmul, self.matmul_a, self.matmul_b = P.MatMul(), P.MatMul(transpose_a=True), P.MatMul(transpose_b=True)

    def construct(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gathered, kernels = self.gathered(x), self.kernels(weight)
        return self.pictures(self.matmul_b(gathered, kernels), x.shape), gathered, kernels

    def bprop(
        self,
        x: Tensor,
        weight: Tensor,
        out: tuple[Tensor, Tensor, Tensor],
        gradients: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        (batch, channels, height, width), out_channels = x.shape, weight.shape[0]
        rows = self.reshape(self.transpose(gradients[0], (0, 2, 3, 1)), (-1, out_channels))
        by_weight = self.reshape(self.matmul_a(rows, out[1]), (-1, 3, 3, channels))
        gathered = self.reshape(self.lookup(rows, neighbours(batch, height, width), 0), (-1, TAPS * out_channels))
        kernels = self.lookup(self.reshape(out[2], (-1, channels)), turned(out_channels), 0)
        return self.pictures(self.matmul(gathered, kernels), x.shape), self.transpose(by_weight, (0, 3, 1, 2))

    def gathered(self, x: Tensor) -> Tensor:
        """What each place sees: (B, C, H, W) -> (B * H * W, 9 * C)."""
        batch, channels, height, width = x.shape
        rows = self.reshape(self.transpose(x, (0, 2, 3, 1)), (-1, channels))
        return self.reshape(self.lookup(rows, neighbours(batch, height, width), 0), (-1, TAPS * channels))

    def kernels(self, weight: Tensor) -> Tensor:
        """(out, C, 3, 3) -> (out, 9 * C)."""
        return self.reshape(self.transpose(weight, (0, 2, 3, 1)), (weight.shape[0], -1))

    def pictures(self, rows: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
        """(B * H * W, out) -> (B, out, H, W), for pictures of ``shape``."""
        return self.transpose(self.reshape(rows, (shape[0], shape[2], shape[3], -1)), (0, 3, 1, 2))


# One cell for all layers and one tensor for each size, which many layers have: a network so compiles faster.


@cache
def row_convolution() -> RowConvolution:
    return RowConvolution()


@ops.constexpr
def neighbours(batch: int, height: int, width: int) -> Tensor:
    """Of (B * H * W) rows, the nine around each, line by line; past the last where it is outside of the picture."""
    return _neighbours(batch, height, width)


@ops.constexpr
def turned(out_channels: int) -> Tensor:
    """Of rows (out, tap), those of the last tap first: (tap, out)."""
    return _turned(out_channels)


@cache
def _neighbours(batch: int, height: int, width: int) -> Tensor:
    pixels = np.pad(np.arange(height * width).reshape(height, width), 1, constant_values=-1)
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (3, 3)).reshape(-1)
    first = np.arange(batch)[:, None] * height * width
    return Tensor(np.where(windows < 0, batch * height * width, first + windows).astype(np.int32).reshape(-1))


@cache
def _turned(out_channels: int) -> Tensor:
    return Tensor(np.arange(out_channels * TAPS, dtype=np.int32).reshape(out_channels, TAPS)[:, ::-1].T.reshape(-1))
