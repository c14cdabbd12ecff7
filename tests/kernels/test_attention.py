"""Attention is the definition, whatever the numbers of heads, queries and keys, and of queries at a time."""

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mindspore import Tensor, ops

from gm.kernels.attention import attention
from tests.models.test_math_attention import HeadsApart, expected

SHAPE = st.tuples(*(st.integers(1, most) for most in (2, 3, 40, 40, 50)))
# (pictures, heads, queries, keys, width): more queries than one core takes, and than there is room for at a time
LARGE = [(1, 2, 700, 9, 8), (1, 1, 90, 2000, 16), (2, 1, 300, 300, 33)]


def check(batch, heads, queries, keys, width, causal):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    rng = np.random.default_rng(0)
    shapes = [(batch * heads, count, width) for count in (queries, keys, keys, queries)]
    arrays = [rng.normal(size=shape) for shape in shapes]
    *inputs, slopes = (Tensor(array, ms.float32) for array in arrays)
    cell = HeadsApart(attention(causal), batch, heads)
    gradients = ops.GradOperation(get_all=True, sens_param=True)(cell)(*inputs, slopes)
    for mine, right in zip((cell(*inputs), *gradients), expected(*arrays, causal)):
        np.testing.assert_allclose(mine.asnumpy(), right, atol=2e-6 * max(1.0, np.abs(right).max()))


@given(SHAPE)
def test_few_rows(shape):
    check(*shape, causal=False)


@given(SHAPE)
def test_no_query_sees_what_is_behind_it(shape):
    batch, heads, queries, _, width = shape
    check(batch, heads, queries, queries, width, causal=True)


@pytest.mark.parametrize("shape", LARGE)
def test_more_than_is_computed_at_a_time(shape):
    check(*shape, causal=False)


def test_large_scores_do_not_overflow_and_what_is_not_finite_stays_in_its_row():
    ms.set_context(mode=ms.PYNATIVE_MODE)
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(6, 8)).astype(np.float32) for _ in range(3))
    out = attention(False)(Tensor(1e4 * query), Tensor(key), Tensor(value), 1, 1).asnumpy()
    most = (query @ key.T).argmax(axis=1)
    np.testing.assert_allclose(out, value[most], rtol=1e-5)
    good = attention(False)(Tensor(query), Tensor(key), Tensor(value), 1, 1).asnumpy()
    for bad in (np.nan, np.inf):
        query[2, 0] = bad
        out = attention(False)(Tensor(query), Tensor(key), Tensor(value), 1, 1).asnumpy()
        assert np.isnan(out[2]).all()
        np.testing.assert_array_equal(np.delete(out, 2, 0), np.delete(good, 2, 0))
