"""Attention written out: the definition, its gradient, in pieces of any size or by a kernel, in bounded memory."""

import subprocess
import sys
from unittest import mock

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mindspore import Tensor, nn, ops

from gm.models import layers
from gm.models.math_attention import MathAttention, heads_apart, heads_joined, pieces

HEADS, QUERIES, KEYS, WIDTH = 3, 5, 5, 16
# whole; two heads and one; unequal parts of a head; less than one query's scores
SIZES = {False: (2**24, 2 * QUERIES * KEYS, 3 * KEYS, 1), True: (2**24, 3 * KEYS)}


@pytest.fixture(autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)


@given(heads=st.integers(1, 40), queries=st.integers(1, 60), keys=st.integers(1, 60), most=st.integers(1, 5000))
def test_pieces_cover_everything_once_and_none_is_too_large(heads, queries, keys, most):
    seen = np.zeros((heads, queries), int)
    for head, count, rows in pieces(heads, queries, keys, most):
        for first, length in rows:
            seen[head : head + count, first : first + length] += 1
            assert count * length * keys <= max(most, keys)
    assert (seen == 1).all()


class Gradients(nn.Cell):
    def __init__(self, attention: nn.Cell):
        super().__init__(auto_prefix=False)
        self.attention = attention
        self.differentiate = ops.GradOperation(get_all=True, sens_param=True)

    def construct(self, query, key, value, slopes):
        return self.attention(query, key, value), self.differentiate(self.attention)(query, key, value, slopes)


def expected(query, key, value, slopes, causal):
    """Output and gradients in float64, from the definition."""
    scores = query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[-1])
    if causal:
        scores = np.where(np.tril(np.ones(scores.shape[1:])), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    dweights = slopes @ value.transpose(0, 2, 1)
    dscores = weights * (dweights - (dweights * weights).sum(axis=-1, keepdims=True)) / np.sqrt(query.shape[-1])
    gradients = dscores @ key, dscores.transpose(0, 2, 1) @ query, weights.transpose(0, 2, 1) @ slopes
    return weights @ value, *gradients


class HeadsApart(nn.Cell):
    """An attention that takes rows of heads side by side, for maps (B * H, N, D)."""

    def __init__(self, attention: MathAttention, batch: int, heads: int = 1):
        super().__init__()
        self.attention, self.batch, self.heads = attention, batch, heads

    def construct(self, query, key, value):
        rows = [heads_joined(x, self.batch, self.heads) for x in (query, key, value)]
        out = self.attention(rows[0], rows[1], rows[2], self.batch, self.heads)
        return heads_apart(out, self.batch, self.heads)


def in_pieces(*options) -> MathAttention:
    """As where there is no kernel."""
    with mock.patch.dict(layers.KERNELS, {"CPU": ()}):
        return MathAttention(WIDTH, *options)


def arrays(keys: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = ((HEADS, QUERIES, WIDTH), (HEADS, keys, WIDTH), (HEADS, keys, WIDTH), (HEADS, QUERIES, WIDTH))
    return [rng.normal(size=shape) for shape in shapes]


@pytest.mark.parametrize(("causal", "keys", "heads"), [(False, 7, 1), (True, KEYS, 1), (False, 7, HEADS)])
def test_output_and_gradients_are_the_definition_for_every_size_of_the_pieces(causal, keys, heads):
    inputs = arrays(keys, seed=0)
    wanted = expected(*inputs, causal)
    batch = HEADS // heads
    cells = [Gradients(HeadsApart(in_pieces(causal, most), batch, heads)) for most in SIZES[causal]]
    cells.append(Gradients(HeadsApart(MathAttention(WIDTH, causal), batch, heads)))
    for cell in cells:
        out, gradients = cell(*(Tensor(array, ms.float32) for array in inputs))
        for ours, right in zip((out, *gradients), wanted):
            np.testing.assert_allclose(ours.asnumpy(), right, atol=2e-6 * np.abs(right).max())


def test_in_float16_softmax_and_its_gradient_are_as_fine_as_the_numbers():
    inputs = [array.astype(np.float16) for array in arrays(KEYS, seed=1)]
    wanted = expected(*(array.astype(np.float64) for array in inputs), causal=False)
    out, gradients = Gradients(HeadsApart(MathAttention(WIDTH, False, 3 * KEYS), HEADS))(*map(Tensor, inputs))
    for ours, right in zip((out, *gradients), wanted):
        assert ours.dtype == ms.float16
        assert np.linalg.norm(ours.asnumpy() - right) <= 2**-10 * np.linalg.norm(right)


def test_a_common_part_of_the_gradient_is_not_lost_to_rounding():
    """Values with a large mean: what the scores' gradient subtracts is hundreds of times what remains."""
    query, key, value, slopes = arrays(KEYS, seed=2)
    value, slopes = value + 30.0, np.abs(slopes)
    inputs = [array.astype(np.float16) for array in (query, key, value, slopes)]
    wanted = expected(*(array.astype(np.float64) for array in inputs), causal=False)
    cell = Gradients(HeadsApart(MathAttention(WIDTH), HEADS))
    _, gradients = cell(*map(Tensor, inputs))
    out_rounding = 2**-11 * np.abs(wanted[0]).max() * np.abs(inputs[3].astype(np.float64)).sum(-1).max()
    error = np.abs(gradients[0].asnumpy() - wanted[1]).max()
    assert error <= 2 * out_rounding / np.sqrt(WIDTH) * np.abs(inputs[1].astype(np.float64)).max()


@pytest.mark.parametrize(
    "build", [in_pieces, lambda *options: MathAttention(WIDTH, *options)], ids=["pieces", "kernel"]
)
def test_pynative_gives_the_same(build):
    inputs = arrays(KEYS, seed=3)
    wanted = expected(*inputs, causal=True)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    attention = HeadsApart(build(True, 3 * KEYS), HEADS)
    *given_inputs, slopes = (Tensor(array, ms.float32) for array in inputs)
    gradients = ops.GradOperation(get_all=True, sens_param=True)(attention)(*given_inputs, slopes)
    for ours, right in zip((attention(*given_inputs), *gradients), wanted):
        np.testing.assert_allclose(ours.asnumpy(), right, atol=2e-6 * np.abs(right).max())


# Peak resident memory above what the process had with its inputs made, in bytes.
PEAK = """
import gm, numpy as np, sys
from mindspore import Tensor, nn, ops
import mindspore as ms
from tests.models.test_math_attention import Gradients, HeadsApart
from gm.models import layers
from gm.models import layers
from gm.models.math_attention import MathAttention

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

if sys.argv[1] == "pieces":
    layers.KERNELS = {}
ms.set_context(mode=ms.GRAPH_MODE)
rng = np.random.default_rng(0)
inputs = [Tensor(rng.normal(size=(4, 4096, 16)), ms.float32) for _ in range(4)]
cell = Gradients(HeadsApart(MathAttention(16, False, 2**22), 4))
before = peak()
out, gradients = cell(*inputs)
[array.asnumpy() for array in (out, *gradients)]
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", ["pieces", "kernel"])
def test_forward_and_backward_never_hold_the_score_matrix(how):
    done = subprocess.run([sys.executable, "-c", PEAK, how], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 4 * 4 * 4096 * 4096  # one float32 score matrix
