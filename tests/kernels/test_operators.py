"""Kernels in MindSpore's graphs: what is changed in place is in order, and other types than float32 are refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from gm.kernels.layers import silu
from gm.kernels.operators import operator, updating

ROOT = Path(__file__).resolve().parents[2]
# Around what one core takes at a time, and several tensors within it.
SIZES = [(1,), (7, 3), (2**14 - 23,), (2**14,), (2**14 + 1,), (5,), (3, 33333), (2,)]
MODES = pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE], ids=["graph", "pynative"])


def arrays(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=size).astype(np.float32) for size in SIZES]


class Change(nn.Cell):
    """Changes Parameters between two readings of the first of them."""

    def __init__(self, name: str, values: list[np.ndarray], others: int):
        super().__init__()
        self.changed = ParameterTuple([Parameter(Tensor(value), name=f"x{i}") for i, value in enumerate(values)])
        settings = [False] if others else []
        self.kernel = updating(name, settings + [True] * len(values) + [False] * others)

    def construct(self, *inputs):
        before = ops.reduce_sum(self.changed[0])
        if inputs:
            self.kernel(inputs[0], *self.changed, *inputs[1:])
        else:
            self.kernel(*self.changed)
        return before, ops.reduce_sum(self.changed[0])


@MODES
@pytest.mark.parametrize(
    ("name", "rule"),
    [("accumulate", lambda x, y, number: x + number * y), ("approach", lambda x, y, number: x + number * (y - x))],
)
def test_many_tensors_change_at_once(name, rule, mode):
    ms.set_context(mode=mode)
    values, others, number = arrays(0), arrays(1), np.float32(0.3)
    change = Change(name, values, len(others))
    before, after = change(Tensor([number]), *map(Tensor, others))
    wanted = [rule(value, other, number) for value, other in zip(values, others)]
    for parameter, right in zip(change.changed, wanted):
        np.testing.assert_allclose(parameter.asnumpy(), right, rtol=1e-6, atol=1e-6)
    assert float(before.asnumpy()) == values[0][0]
    assert float(after.asnumpy()) == pytest.approx(wanted[0][0], rel=1e-6)


@MODES
def test_many_tensors_become_zero(mode):
    ms.set_context(mode=mode)
    change = Change("clear", arrays(0), 0)
    before, after = change()
    assert float(before.asnumpy()) == arrays(0)[0][0]
    assert float(after.asnumpy()) == 0
    assert not any(parameter.asnumpy().any() for parameter in change.changed)


def test_what_was_set_in_between_is_what_is_changed():
    """As ``--resume`` and the lending of an average do to a compiled step."""
    ms.set_context(mode=ms.GRAPH_MODE)
    values, others = arrays(0), arrays(1)
    change = Change("accumulate", values, len(others))
    change(Tensor(np.ones(1, np.float32)), *map(Tensor, others))
    for parameter, value in zip(change.changed, values):
        parameter.set_data(Tensor(value))
    change(Tensor(np.ones(1, np.float32)), *map(Tensor, others))
    for parameter, value, other in zip(change.changed, values, others):
        np.testing.assert_array_equal(parameter.asnumpy(), value + other)


@MODES
def test_sums_of_squares_keep_their_precision_and_show_what_is_not_finite(mode):
    """Of equal numbers, which round alike, 64 are added up in float32: half a unit of 2**-23 each at most."""
    ms.set_context(mode=mode)
    given = [*arrays(2), np.full((2000, 3000), 1e-3, np.float32)]
    kernel = operator("square_sums", 1, lambda *shapes: (len(shapes),))
    for spoilt in (None, 0, 2, 5):
        tensors = [array.copy() for array in given]
        if spoilt is not None:
            tensors[spoilt].reshape(-1)[-1] = np.nan if spoilt else 1e30
        found = kernel(*map(Tensor, tensors)).asnumpy()
        for index, array in enumerate(given):
            if index == spoilt:
                assert not np.isfinite(found[index])
            else:
                assert found[index] == pytest.approx((array.astype(np.float64) ** 2).sum(), rel=4e-6)


def test_another_type_is_refused():
    ms.set_context(mode=ms.PYNATIVE_MODE)
    with pytest.raises(RuntimeError):
        silu()(Tensor(np.ones(3, np.float16))).asnumpy()


PROGRAM = """
import hashlib, json, os, sys
os.sched_setaffinity(0, json.loads(sys.argv[1]))
import gm
import mindspore as ms, numpy as np
from mindspore import Tensor, ops
from gm.kernels import layers
from gm.kernels.attention import attention
from gm.kernels.convolution import convolution
from gm.kernels.operators import operator
rng = np.random.default_rng(0)
def draw(*shape): return Tensor(rng.normal(size=shape).astype(np.float32))
def all_of(cell, *inputs):
    out = cell(*inputs)
    first = out[0] if isinstance(out, tuple) else out
    slopes = ops.GradOperation(get_all=True)(cell)(*inputs)
    return [first, *(slope for slope in slopes if isinstance(slope, Tensor))]
found = all_of(layers.layer_norm(1e-5), draw(900, 64), draw(64), draw(64))
found += all_of(layers.group_norm(4, 1e-5, True), draw(9, 16, 30, 31), draw(16), draw(16))
found += all_of(convolution(), draw(5, 40, 20, 21), draw(30, 40, 3, 3), draw(30))
found += all_of(attention(False), draw(2 * 300, 64), draw(2 * 70, 64), draw(2 * 70, 64), 2, 2)
found.append(operator("square_sums", 1, lambda *shapes: (len(shapes),))(draw(99999), draw(3), draw(70000)))
digest = hashlib.sha256()
for tensor in found:
    digest.update(tensor.asnumpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores cannot be chosen here")
def test_numbers_do_not_depend_on_the_number_of_cores():
    cores = sorted(os.sched_getaffinity(0))
    found = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps(few)], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()[-1]
        for few in (cores[:1], cores, cores)
    }
    assert len(found) == 1
