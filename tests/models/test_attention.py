"""Attention against its definition."""

import mindspore as ms
import numpy as np
import pytest

from gm.models.attention import MathAttention


@pytest.fixture(autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.mark.parametrize(("dtype", "tolerance"), [(ms.float32, 1e-5), (ms.float16, 5e-3)])
def test_a_causal_query_sees_itself_and_what_is_before_it(dtype, tolerance):
    query, key, value = np.random.default_rng(1).normal(size=(3, 2, 7, 16))
    scores = np.where(np.tril(np.ones((7, 7))), query @ key.transpose(0, 2, 1) / 4, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    expected = weights / weights.sum(axis=-1, keepdims=True) @ value
    ours = MathAttention(16, causal=True)(*(ms.Tensor(x.astype(np.float32)).astype(dtype) for x in (query, key, value)))
    assert ours.dtype == dtype
    np.testing.assert_allclose(ours.asnumpy().astype(np.float32), expected, atol=tolerance * np.abs(expected).max())
