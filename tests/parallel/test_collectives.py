"""Ascend's collectives are asked for as its manual says: stand-ins that know what every device gives."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from gm.parallel import collectives
from gm.parallel.collectives import AllGather, AllReduce, Group, ReduceScatter

SIZE = 4
GIVEN = [np.arange(8, dtype=np.float32) * (rank + 1) for rank in range(SIZE)]


@pytest.fixture(autouse=True)
def ascend(monkeypatch):
    """``mindspore.ops.ReduceScatter(op, group)`` divides axis 0, ``AllGather(group)`` joins it, all in rank order."""

    def made(kind):
        def primitive(*arguments):
            group = arguments[-1]
            assert group.startswith("fsdp")
            assert kind == "gather" or arguments[0] == "sum"
            rank = int(group[-1])

            def run(x):
                np.testing.assert_array_equal(x.asnumpy(), GIVEN[rank])
                if kind == "gather":
                    return Tensor(np.concatenate(GIVEN))
                total = np.sum(GIVEN, axis=0)
                return Tensor(np.split(total, SIZE)[rank] if kind == "scatter" else total)

            return run

        return primitive

    for name, kind in (("AllReduce", "reduce"), ("ReduceScatter", "scatter"), ("AllGather", "gather")):
        monkeypatch.setattr(collectives.ops, name, made(kind))
    before = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=before)


@pytest.mark.parametrize("rank", range(SIZE))
def test_parts_and_sums_are_those_of_numpy(rank):
    group = Group(f"fsdp of {rank}", SIZE, rank, everyone=False)
    x = Tensor(GIVEN[rank])
    total = np.sum(GIVEN, axis=0)
    np.testing.assert_array_equal(AllReduce(group)(x).asnumpy(), total)
    np.testing.assert_array_equal(ReduceScatter(group, "Ascend")(x).asnumpy(), total[2 * rank : 2 * rank + 2])
    np.testing.assert_array_equal(AllGather(group, "Ascend")(x).asnumpy(), np.concatenate(GIVEN))


def test_a_group_of_one_needs_no_communication():
    group, x = Group("alone", 1, 0, everyone=True), Tensor(GIVEN[0])
    for cell in (AllReduce(group), ReduceScatter(group), AllGather(group)):
        np.testing.assert_array_equal(cell(x).asnumpy(), GIVEN[0])
