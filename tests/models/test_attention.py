"""The door of attention: its definition, what is chosen on which device, and the contract of Ascend's kernel."""

import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from gm.models import attention
from gm.models.architecture import UNetArchitecture
from gm.models.attention import Choice, FlashAttention, MathAttention, MultiHeadAttention, choose, flash_takes
from gm.models.build import build_unet
from gm.models.precision import compute_in


@pytest.fixture(autouse=True)
def graph_mode(monkeypatch):
    ms.set_context(mode=ms.GRAPH_MODE)
    monkeypatch.setattr(Choice, "flash", False)


@pytest.mark.parametrize(("dtype", "tolerance"), [(ms.float32, 1e-5), (ms.float16, 5e-3)])
def test_a_causal_query_sees_itself_and_what_is_before_it(dtype, tolerance):
    query, key, value = np.random.default_rng(1).normal(size=(3, 2, 7, 16))
    rows = [Tensor(x.reshape(14, 16).astype(np.float32)).astype(dtype) for x in (query, key, value)]
    scores = np.where(np.tril(np.ones((7, 7))), query @ key.transpose(0, 2, 1) / 4, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    expected = weights / weights.sum(axis=-1, keepdims=True) @ value
    ours = MathAttention(16, causal=True)(*rows, 2, 1)
    assert ours.dtype == dtype
    ours = ours.asnumpy().astype(np.float32).reshape(expected.shape)
    np.testing.assert_allclose(ours, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(
    ("wanted", "target", "precision", "flash", "level", "words"),
    [
        ("auto", "Ascend", "fp16", True, "INFO", "flash; math"),
        ("flash", "Ascend", "bf16", True, "INFO", "flash; math"),
        ("math", "Ascend", "fp16", False, "INFO", "as asked for"),
        ("auto", "Ascend", "fp32", False, "INFO", "--precision is fp32"),
        ("flash", "Ascend", "fp32", False, "WARNING", "--precision is fp32"),
        ("auto", "CPU", "fp16", False, "INFO", "this is the CPU"),
        ("flash", "CPU", "fp16", False, "WARNING", "this is the CPU"),
        ("math", "CPU", "fp32", False, "INFO", "as asked for"),
    ],
)
def test_the_choice_is_made_and_told_once(wanted, target, precision, flash, level, words, caplog):
    with caplog.at_level(logging.INFO):
        choose(wanted, target, precision)
        layers = [MultiHeadAttention(2, 16) for _ in range(3)]
    assert {type(layer.attention) for layer in layers} == {FlashAttention if flash else MathAttention}
    (line,) = caplog.records
    assert line.levelname == level
    assert words in line.getMessage()


def tensor_like(*shape, dtype=ms.float16):
    return SimpleNamespace(shape=shape, dtype=dtype)


@pytest.mark.parametrize(
    ("heads", "shape", "taken"),
    [
        (10, (2, 4096, 640), True),
        (20, (2, 1024, 1280), True),
        (8, (2, 4096, 320), False),  # heads of 40, as in SD 1.x
        (1, (1, 16384, 512), True),
        (1, (1, 16384, 528), False),
        (256, (1, 77, 4096), True),
        (257, (1, 77, 4112), False),
        (1, (2048, 77, 64), True),
        (1, (2049, 77, 64), False),
        (1, (1, 524288, 64), True),
        (1, (1, 524289, 64), False),
    ],
)
def test_shapes_beyond_the_documented_limits_are_left_to_math(heads, shape, taken):
    x, context = tensor_like(*shape), tensor_like(shape[0], 77, shape[2])
    assert flash_takes(x, x, x, heads) is taken
    assert flash_takes(x, context, context, heads) is taken
    assert flash_takes(context, x, x, heads) is taken


def test_only_half_precision_of_one_kind_is_given_to_the_kernel():
    shape = (2, 64, 64)
    half, brain, single = (tensor_like(*shape, dtype=dtype) for dtype in (ms.float16, ms.bfloat16, ms.float32))
    assert flash_takes(half, half, half, 1)
    assert flash_takes(brain, brain, brain, 1)
    for mixed in ((single, single, single), (half, single, single), (half, half, brain), (half, brain, half)):
        assert not flash_takes(*mixed, 1)


class Kernel:
    """In place of ``ops.flash_attention_score``: checks what its documentation asks for, and computes what it says."""

    def __init__(self):
        self.calls = 0

    def __call__(
        self, query, key, value, head_num, real_shift=None, drop_mask=None, padding_mask=None, attn_mask=None,
        prefix=None, actual_seq_qlen=None, actual_seq_kvlen=None, keep_prob=1.0, scalar_value=1.0,
        pre_tokens=2147483647, next_tokens=2147483647, inner_precise=0, input_layout="BSH", sparse_mode=0,
    ):  # fmt: skip
        self.calls += 1
        assert query.dtype in (ms.float16, ms.bfloat16)
        assert query.dtype == key.dtype == value.dtype
        assert input_layout == "BSH"
        (batch, queries, hidden), keys = query.shape, key.shape[1]
        assert key.shape == value.shape == (batch, keys, hidden)
        assert isinstance(head_num, int)
        assert 1 <= head_num <= 256
        assert hidden % head_num == 0
        width = hidden // head_num
        assert width % 16 == 0
        assert width <= 512
        assert isinstance(scalar_value, float)
        assert scalar_value == pytest.approx(width**-0.5)
        assert keep_prob == 1.0
        unused = (real_shift, drop_mask, padding_mask, prefix, actual_seq_qlen, actual_seq_kvlen)
        assert all(argument is None for argument in unused)
        assert sparse_mode == 0
        hidden_scores = np.zeros((queries, keys), bool)
        if attn_mask is not None:
            assert attn_mask.dtype in (ms.bool_, ms.uint8)
            assert attn_mask.shape in ((queries, keys), (batch, 1, queries, keys), (batch, head_num, queries, keys))
            hidden_scores = attn_mask.asnumpy().astype(bool)

        def split(x):
            x = x.astype(ms.float32).asnumpy().astype(np.float64)
            return x.reshape(batch, -1, head_num, width).transpose(0, 2, 1, 3)

        scores = scalar_value * split(query) @ split(key).transpose(0, 1, 3, 2)
        scores = np.where(hidden_scores, -np.inf, scores)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out = weights / weights.sum(axis=-1, keepdims=True) @ split(value)
        out = out.transpose(0, 2, 1, 3).reshape(batch, queries, hidden)
        return Tensor(out.astype(np.float32)).astype(query.dtype)


@pytest.fixture
def kernel(monkeypatch):
    stand_in = Kernel()
    monkeypatch.setattr(attention.ops, "flash_attention_score", stand_in)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    return stand_in


@pytest.mark.parametrize(
    ("heads", "width", "queries", "keys", "causal"),
    [(2, 64, 48, 48, False), (3, 16, 40, 77, False), (2, 32, 77, 77, True), (1, 512, 16, 16, False)],
)
def test_the_kernel_is_called_as_documented_and_agrees_with_math(kernel, heads, width, queries, keys, causal):
    rng = np.random.default_rng(0)
    lengths = (queries, keys, keys)
    given = [Tensor(rng.normal(size=(2 * length, heads * width)).astype(np.float16)) for length in lengths]
    math = MultiHeadAttention(heads, width, causal)(*given, 2).asnumpy()
    assert kernel.calls == 0
    choose("auto", "Ascend", "fp16")
    flash = MultiHeadAttention(heads, width, causal)(*given, 2).asnumpy()
    assert kernel.calls == 1
    assert flash.dtype == math.dtype == np.float16
    np.testing.assert_allclose(flash.astype(np.float64), math.astype(np.float64), atol=1e-3 * np.abs(math).max())


def test_what_the_kernel_does_not_take_is_computed_by_math(kernel):
    rng = np.random.default_rng(1)
    wide = Tensor(rng.normal(size=(16, 32)).astype(np.float32))
    narrow_heads = Tensor(rng.normal(size=(16, 80)).astype(np.float16))
    choose("flash", "Ascend", "fp16")
    for heads, x in ((2, wide), (2, narrow_heads)):
        assert MultiHeadAttention(heads, x.shape[1] // heads)(x, x, x, 1).dtype == x.dtype
    assert kernel.calls == 0


def test_a_network_in_half_precision_takes_the_kernel_in_every_layer(kernel):
    arch = UNetArchitecture(
        channels=(32,), down_depths=((1,),), mid_depth=None, up_depths=((0, 1),), context_dim=16, vector_dim=None,
        num_heads=2,
    )  # fmt: skip
    rng = np.random.default_rng(2)
    batch = [Tensor(rng.normal(size=shape).astype(np.float32)) for shape in ((2, 4, 8, 8), (2,), (2, 5, 16))]
    found = {}
    for wanted in ("math", "auto"):
        choose(wanted, "Ascend", "fp16")
        unet = build_unet(arch, seed=0)
        noise = np.random.default_rng(3)
        for parameter in unet.get_parameters():  # none of them zero: what begins at zero hides what is before it
            value = parameter.asnumpy()
            scale = 0.1 / np.sqrt(value[0].size)
            parameter.set_data(Tensor((value + scale * noise.normal(size=value.shape)).astype(np.float32)))
        compute_in(unet, "fp16")
        found[wanted] = unet(*batch).asnumpy()
        assert kernel.calls == (0 if wanted == "math" else 4)  # self and cross attention of two blocks
    assert np.abs(found["auto"] - found["math"]).max() <= 2e-3 * np.abs(found["math"]).max()


class TwoSamples(nn.Cell):
    def __init__(self, attention: MultiHeadAttention):
        super().__init__()
        self.attention = attention

    def construct(self, query, key, value):
        return self.attention(query, key, value, 2)


# MindSpore's own inference of shapes and types for the real kernel, forward and backward, without running it.
PRECOMPILE = """
import gm, sys
import mindspore as ms, numpy as np
from mindspore import Tensor
from gm.models.attention import MultiHeadAttention, choose
from tests.models.test_attention import TwoSamples
from tests.models.test_math_attention import Gradients

ms.set_context(mode=ms.GRAPH_MODE)
choose("flash", "Ascend", "fp16")
for causal in (False, True):
    x = Tensor(np.zeros((2 * 77, 64)), ms.float16)
    Gradients(TwoSamples(MultiHeadAttention(int(sys.argv[1]), 64 // int(sys.argv[1]), causal)))(x, x, x, x)
print("inferred")
"""


@pytest.mark.slow
def test_mindspore_infers_the_real_kernel_and_its_gradient(tmp_path):
    graphs = {"MS_DEV_PRECOMPILE_ONLY": "1", "MS_DEV_SAVE_GRAPHS": "1", "MS_DEV_SAVE_GRAPHS_PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PRECOMPILE, "2"], capture_output=True, text=True, env={**os.environ, **graphs}
    )
    assert "inferred" in done.stdout, done.stderr[-2000:]
    validated = [path.read_text() for path in sorted(tmp_path.rglob("*_validate_*.ir"))]
    assert len(validated) == 2
    for graph in validated:
        assert "FlashAttentionScore(" in graph
        assert "FlashAttentionScoreGrad(" in graph
        assert "PrimFunc_Softmax(" not in graph
