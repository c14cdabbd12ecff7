"""Norms and clipping over many tensors."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from gm.training import gradients


class Clip(nn.Cell):
    def __init__(self, max_norm: float):
        super().__init__()
        self.max_norm, self.square_sums = max_norm, gradients.SquareSums()

    def construct(self, grads):
        norm = ops.sqrt(ops.reduce_sum(self.square_sums(grads)))
        return norm, gradients.scale(grads, gradients.clip_factor(norm, self.max_norm))


def draw(*shapes, dtype=np.float32):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def test_global_norm_keeps_its_precision_over_millions_of_numbers():
    arrays = draw((2000, 1504), (1501, 1501), (128, 128), (3,))
    norm, _ = Clip(1.0)(tuple(map(Tensor, arrays)))
    expected = np.sqrt(sum((array.astype(np.float64) ** 2).sum() for array in arrays))
    assert float(norm.asnumpy()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_scales_down_to_the_bound_and_never_up(max_norm):
    arrays = draw((4, 5), (5,), (2, 3, 3, 3))
    norm, clipped = Clip(max_norm)(tuple(map(Tensor, arrays)))
    factor = min(1.0, max_norm / float(norm.asnumpy()))
    for array, result in zip(arrays, clipped):
        np.testing.assert_allclose(result.asnumpy(), array * factor, rtol=1e-5)


def test_half_precision_gradients_do_not_overflow_their_norm_and_are_scaled_in_float32():
    norm, clipped = Clip(1e-6)((Tensor(np.full((100,), 300.0, np.float16)),))
    assert float(norm.asnumpy()) == pytest.approx(3000.0)
    assert clipped[0].dtype == ms.float32
    np.testing.assert_allclose(clipped[0].asnumpy(), 1e-7, rtol=1e-5)
