"""Convolutions are the definition, whatever the sizes: of pictures, of kernels, and of what is computed at a time."""

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mindspore import Tensor, ops

from gm.kernels.convolution import convolution

SHAPE = st.tuples(*(st.integers(1, most) for most in (3, 9, 11, 12, 12)), st.sampled_from([1, 3, 5]))
# (pictures, channels, channels of the result, height, width, side): more than one block of each
LARGE = [(2, 33, 5, 4, 7, 3), (1, 3, 139, 9, 30, 3), (1, 2, 3, 5, 400, 3), (1, 4, 6, 300, 2, 3), (5, 70, 9, 16, 9, 1)]


def defined(x, kernels, bias, slopes):
    """The result, and the gradients of all three, in float64."""
    side = kernels.shape[2]
    margin = ((0, 0), (0, 0), (side // 2,) * 2, (side // 2,) * 2)
    seen = np.lib.stride_tricks.sliding_window_view(np.pad(x, margin), (side, side), axis=(2, 3))
    around = np.lib.stride_tricks.sliding_window_view(np.pad(slopes, margin), (side, side), axis=(2, 3))
    return (
        np.einsum("bchwij,ocij->bohw", seen, kernels) + bias[:, None, None],
        np.einsum("bohwij,ocij->bchw", around, kernels[:, :, ::-1, ::-1]),
        np.einsum("bchwij,bohw->ocij", seen, slopes),
        slopes.sum((0, 2, 3)),
    )


def check(batch, channels, outputs, height, width, side):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    rng = np.random.default_rng(0)
    shapes = [
        (batch, channels, height, width),
        (outputs, channels, side, side),
        (outputs,),
        (batch, outputs, height, width),
    ]
    arrays = [rng.normal(size=shape) for shape in shapes]
    *given_arrays, slopes = (Tensor(array, ms.float32) for array in arrays)
    gradients = ops.GradOperation(get_all=True, sens_param=True)(convolution())(*given_arrays, slopes)
    for mine, right in zip((convolution()(*given_arrays), *gradients), defined(*arrays)):
        np.testing.assert_allclose(mine.asnumpy(), right, atol=1e-5 * max(1.0, np.abs(right).max()))


@given(SHAPE)
def test_small_pictures(shape):
    check(*shape)


@pytest.mark.parametrize("shape", LARGE)
def test_more_than_is_computed_at_a_time(shape):
    check(*shape)
