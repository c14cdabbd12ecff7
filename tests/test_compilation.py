"""Compiled graphs: counted, kept, and never taken for another one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from gm import compilation
from gm.compilation import Graph, fingerprint

ROOT = Path(__file__).resolve().parents[1]


class Inner(nn.Cell):
    def __init__(self, groups: int = 2):
        super().__init__()
        self.groups = groups
        self.softmax = ops.operations.Softmax(-1)

    def construct(self, x):
        return self.softmax(x) * self.groups


class Outer(Graph):
    def __init__(self, factor=2.0, groups=2, width=3, constant=1.0, trained=True, axis=-1, name="weight"):
        super().__init__()
        self.factor = factor
        self.inner = Inner(groups)
        self.inner.softmax = ops.operations.Softmax(axis)
        self.constant = Tensor(constant, ms.float32)
        self.weight = Parameter(Tensor(np.ones(width, np.float32)), name=name, requires_grad=trained)

    def construct(self, x):
        return self.inner(x) * self.factor + self.constant + self.weight


def test_the_fingerprint_is_the_same_for_the_same_cell():
    assert fingerprint(Outer()) == fingerprint(Outer())


@pytest.mark.parametrize(
    "change",
    [
        {"factor": 3.0},
        {"groups": 4},
        {"width": 4},
        {"constant": 1.0000001},
        {"trained": False},
        {"axis": 0},
        {"name": "other"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_fingerprint_knows_all_that_shapes_a_graph(change):
    assert fingerprint(Outer(**change)) != fingerprint(Outer())


def test_the_fingerprint_knows_training_mode_and_recomputation():
    training, recomputed = Outer(), Outer()
    training.set_train()
    recomputed.inner.recompute()
    assert len({fingerprint(cell) for cell in (Outer(), training, recomputed)}) == 3


def test_values_of_parameters_are_no_part_of_a_graph():
    other = Outer()
    other.weight.set_data(Tensor(np.full(3, 7, np.float32)))
    assert fingerprint(other) == fingerprint(Outer())


def test_a_place_where_nothing_can_be_kept_is_told_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        compilation.keep_in(tmp_path / "file")


def test_a_compilation_is_counted_once_for_each_shape():
    ms.set_context(mode=ms.GRAPH_MODE)
    cell, before = Outer(), len(compilation.done())
    for rows in (1, 2, 1, 2, 2):
        cell(Tensor(np.ones((rows, 3), np.float32)))
    made = compilation.done()[before:]
    assert [(each.what, each.shapes) for each in made] == [("Outer", ((1, 3),)), ("Outer", ((2, 3),))]
    assert all(each.seconds > 0 and not each.from_cache for each in made)


def process(folder: Path, *plan: tuple[float, int, bool]) -> list[tuple[list[float], bool]]:
    """What a process gets that compiles ``x * factor`` for each (factor, size, kept or not): numbers, from cache."""
    command = [sys.executable, Path(__file__), folder, json.dumps(plan)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return [tuple(row) for row in json.loads(done.stdout.splitlines()[-1])]


def test_a_kept_graph_is_taken_for_itself_only(tmp_path):
    two, seven = [2.0] * 3, [7.0] * 4
    made = process(tmp_path, (2, 3, True), (5, 3, False), (7, 4, True))
    assert made == [(two, False), ([5.0] * 3, False), (seven, False)]
    assert process(tmp_path, (2, 3, True), (7, 4, True)) == [(two, True), (seven, True)]
    # another order, other numbers and shapes under the same count of compilations: MindSpore alone takes the old graphs
    assert process(tmp_path, (7, 4, True), (2, 3, True)) == [(seven, True), (two, True)]
    # after the first graph that was not kept, MindSpore takes none that is: slower, never wrong
    mixed = process(tmp_path, (2, 3, False), (9, 3, True), (2, 3, True), (2, 5, True))
    assert mixed == [(two, False), ([9.0] * 3, False), (two, False), ([2.0] * 5, False)]


def test_a_damaged_kept_graph_costs_time_not_numbers(tmp_path):
    process(tmp_path, (2, 3, True))
    for graph in tmp_path.rglob("*.mindir"):
        graph.write_bytes(graph.read_bytes()[:100])
    assert process(tmp_path, (2, 3, True))[0][0] == [2.0] * 3


class Times(Graph):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def construct(self, x):
        return x * self.factor


def main(folder: str, plan: str) -> None:
    ms.set_context(mode=ms.GRAPH_MODE)
    cells, rows = [], []
    for factor, size, kept in json.loads(plan):
        compilation.keep_in(folder if kept else None)
        cells.append(Times(float(factor)))
        values = cells[-1](Tensor(np.ones(size, np.float32))).asnumpy().tolist()
        rows.append((values, compilation.done()[-1].from_cache))
    print(json.dumps(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
