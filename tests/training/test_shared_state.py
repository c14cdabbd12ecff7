"""Pieces of tensors in the files of several devices: whole again, whoever reads them, and never silently incomplete."""

import numpy as np
import pytest
from mindspore import Parameter, Tensor

from gm.errors import SuiteError
from gm.parallel.rules import cut
from gm.parallel.shards import Item, Shard, plan
from gm.training.shared_state import Portion, Shares, Slice, open_pieces, shapes_of, targets, write_pieces

RNG = np.random.default_rng(0)
SHAPES = {"a": (3, 4), "b": (5,), "c": (2, 2, 2), "d": (4, 8)}
WHOLE = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
ITEMS = [Item(name, SHAPES[name], True) for name in ("a", "b", "c")]


def portions(count: int, filled: bool = True, only: frozenset[str] | None = None) -> list[list[Portion]]:
    """The moments ``m.<name>`` of a, b and c in two buckets, by device."""
    found = []
    for index in range(count):
        shards = [Shard(bucket, index, count) for bucket in plan(ITEMS, 60e-6, count)]
        values = [shard.of(WHOLE.__getitem__) if filled else np.zeros(shard.size, np.float32) for shard in shards]
        parameters = [Parameter(Tensor(value), name=f"m.{place}") for place, value in enumerate(values)]
        found.append([Portion(one, shard, "m.", only) for one, shard in zip(parameters, shards)])
    return found


def slices(count: int, kind: str = "columns") -> list[Slice]:
    """The moment ``m.d``, by device."""
    parts = [cut(kind, WHOLE["d"], index, count) for index in range(count)]
    return [
        Slice(Parameter(Tensor(part), name="m.d"), "d", kind, index, count, "m.") for index, part in enumerate(parts)
    ]


def written(folder, found) -> list:
    paths = [folder / f"shard_{index}_of_{len(found)}.ckpt" for index in range(len(found))]
    for path, own in zip(paths, found):
        write_pieces(path, own)
    return paths


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_what_some_devices_write_another_number_reads(tmp_path, count):
    found = portions(count)
    assert shapes_of(found[0]) == {f"m.{item.name}": item.shape for item in ITEMS}
    with open_pieces(written(tmp_path, found), shapes_of(found[0])) as file:
        assert set(file.names()) == {"m.a", "m.b", "m.c"}
        for name in "abc":
            np.testing.assert_array_equal(file.read(f"m.{name}"), WHOLE[name])
        for empty, full in zip(portions(4, filled=False), portions(4)):
            done = []
            for target in targets(empty, done):
                target.set_data(Tensor(file.read(target.name)))
            for finish in done:
                finish()
            for one, other in zip(empty, full):
                np.testing.assert_array_equal(one.parameter.asnumpy(), other.parameter.asnumpy())


@pytest.mark.parametrize("kind", ["rows", "columns", "halves"])
def test_parts_over_axis_tensor_too(tmp_path, kind):
    found = [[part] for part in slices(2, kind)]
    with open_pieces(written(tmp_path, found), shapes_of(found[0])) as file:
        np.testing.assert_array_equal(file.read("m.d"), WHOLE["d"])
    done = []
    (target,) = found[1][0].targets(done)
    target.set_data(Tensor(2 * WHOLE["d"]))
    np.testing.assert_array_equal(found[1][0].parameter.asnumpy(), 2 * cut(kind, WHOLE["d"], 1, 2))


def test_only_those_that_belong_to_it_are_written(tmp_path):
    found = portions(2, only=frozenset("b"))
    with open_pieces(written(tmp_path, found), shapes_of(found[0])) as file:
        assert file.names() == ["m.b"]
        np.testing.assert_array_equal(file.read("m.b"), WHOLE["b"])


@pytest.mark.parametrize("averaged", [False, True])
def test_weights_that_all_devices_have_need_no_pieces_but_their_averages_do(tmp_path, averaged):
    weights = [Parameter(Tensor(WHOLE[name]), name=name) for name in "abc"]
    frozen = Parameter(Tensor(WHOLE["d"]), name="d")
    for index, (own, averages) in enumerate(zip(portions(3), portions(3))):
        for portion in averages:
            portion.prefix = "ema."
        shares = Shares(state=own, averages=averages if averaged else [], index=index, count=3)
        shares.write(tmp_path)
    with shares.joined(tmp_path, [*weights, frozen], []) as (found, means):
        assert [one.name for one in found] == ["a", "b", "c", "d"]
        assert [one.name for one in means] == (["ema.a", "ema.b", "ema.c", "ema.d"] if averaged else [])
        for one in means:
            np.testing.assert_array_equal(one.asnumpy(), WHOLE[one.name.removeprefix("ema.")])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"shard_{index}_of_3.ckpt" for index in range(3)]


@pytest.mark.parametrize("make", [lambda: portions(3), lambda: [[part] for part in slices(4)]])
def test_a_missing_piece_is_told(tmp_path, make):
    found = make()
    paths = written(tmp_path, found)
    for missing in range(len(paths)):
        left = [path for place, path in enumerate(paths) if place != missing]
        with pytest.raises(SuiteError, match=r"a piece of m\.. is missing"):
            open_pieces(left, shapes_of(found[0]))
