"""A 3x3 convolution as one product of matrices: each output pixel's neighbourhood is a row.

For small pictures on the CPU, where MindSpore's convolution unfolds every picture of a batch on its own, into products
too small to be fast. ``docs/performance.md`` has the figures.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops import operations as P

MOST_PIXELS = 256  # of a picture: with more, MindSpore's own convolution is as fast and takes less memory
MOST_WEIGHTS = 128  # products of channels for each pixel of the batch: with more, turning the kernel costs too much


@ops.constexpr
def pays(batch: int, channels: int, out_channels: int, pixels: int) -> bool:
    """Whether a convolution of ``batch`` pictures of ``pixels`` measured faster so, forward and backward."""
    return pixels <= MOST_PIXELS and channels * out_channels <= MOST_WEIGHTS * batch * pixels


@ops.constexpr
def _neighbours(batch: int, height: int, width: int, backwards: bool) -> Tensor:
    """For each pixel the rows of its 3x3 neighbours, one beyond the last row for what lies outside the picture."""
    count = batch * height * width
    padded = np.full((batch, height + 2, width + 2), count, np.int32)
    padded[:, 1:-1, 1:-1] = np.arange(count).reshape(batch, height, width)
    shifts = [(down, right) for down in range(3) for right in range(3)]
    views = [
        padded[:, down : down + height, right : right + width]
        for down, right in (reversed(shifts) if backwards else shifts)
    ]
    return Tensor(np.ascontiguousarray(np.stack(views, axis=-1)).reshape(-1), ms.int32)


@ops.constexpr
def _outside(channels: int) -> Tensor:
    return Tensor(np.zeros((1, channels), np.float32))


class ColumnConvolution(nn.Cell):
    """3x3, stride 1, padding 1, no bias, float32: (B, C, H, W), weight (O, C, 3, 3) -> (B, O, H, W).

    The backward pass unfolds the input again, which costs less than keeping nine times its memory.
    """

    def __init__(self):
        super().__init__()
        self.transpose, self.reshape, self.concat, self.gather = P.Transpose(), P.Reshape(), P.Concat(0), P.Gather()
        self.product, self.weight_product = P.MatMul(transpose_b=True), P.MatMul(transpose_a=True)

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        out_channels, channels = weight.shape[:2]
        columns = self.unfold(x, self.rows(x), False)
        kernel = self.reshape(self.transpose(weight, (0, 2, 3, 1)), (out_channels, 9 * channels))
        return self.picture(self.product(columns, kernel), x.shape, out_channels)

    def bprop(self, x: Tensor, weight: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        out_channels, channels = weight.shape[:2]
        slopes = self.rows(dout)
        dweight = self.weight_product(slopes, self.unfold(x, self.rows(x), False))
        dweight = self.transpose(self.reshape(dweight, (out_channels, 3, 3, channels)), (0, 3, 1, 2))
        kernel = self.reshape(self.transpose(weight, (1, 2, 3, 0)), (channels, 9 * out_channels))
        dx = self.product(self.unfold(dout, slopes, True), kernel)
        return self.picture(dx, x.shape, channels), dweight

    def rows(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B*H*W, C)."""
        return self.reshape(self.transpose(x, (0, 2, 3, 1)), (-1, x.shape[1]))

    def unfold(self, x: Tensor, rows: Tensor, backwards: bool) -> Tensor:
        """The rows of ``x`` -> (B*H*W, 9C), neighbours in the order of the kernel or the other way round."""
        batch, channels, height, width = x.shape
        found = self.gather(self.concat((rows, _outside(channels))), _neighbours(batch, height, width, backwards), 0)
        return self.reshape(found, (batch * height * width, 9 * channels))

    def picture(self, rows: Tensor, shape: tuple[int, ...], channels: int) -> Tensor:
        batch, _, height, width = shape
        return self.transpose(self.reshape(rows, (batch, height, width, channels)), (0, 3, 1, 2))
