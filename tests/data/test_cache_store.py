import json

import numpy as np
import pytest

from gm.data.cache_store import INDEX, ShardStore
from gm.errors import SuiteError


def entry(seed):
    return {
        "a": np.full((2, 3), seed, np.float16),
        "b": np.arange(seed, seed + 5, dtype=np.float32),
        "c": np.zeros(0, np.float16),
    }


@pytest.fixture
def folder(tmp_path):
    store = ShardStore(tmp_path / "store")
    store.write("one", {"aa": entry(1), "bb": entry(2)})
    store.write("two", {"cc": entry(3)}, refused={"dd": "broken"})
    store.save_index()
    return tmp_path / "store"


def read_both(store):
    store.read("aa")
    store.read("bb")


def assert_whole(store):
    assert sorted(store.keys()) == ["aa", "bb", "cc"]
    assert store.refused == {"dd": "broken"}
    for key, seed in (("aa", 1), ("bb", 2), ("cc", 3)):
        found = store.read(key)
        assert found.keys() == {"a", "b", "c"}
        assert all(
            np.array_equal(found[name], value) and found[name].dtype == value.dtype
            for name, value in entry(seed).items()
        )


def test_what_was_written_is_read(folder):
    assert_whole(ShardStore(folder))


def test_the_same_entries_are_the_same_bytes(folder, tmp_path):
    store = ShardStore(tmp_path / "again")
    store.write("two", {"cc": entry(3)}, refused={"dd": "broken"})
    store.write("one", {"bb": entry(2), "aa": entry(1)})
    store.save_index()
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"one": 3}', "{}"])
def test_the_index_is_rebuilt_from_the_shards(folder, content):
    before = (folder / INDEX).read_bytes()
    (folder / INDEX).unlink() if content is None else (folder / INDEX).write_text(content)
    store = ShardStore(folder)
    assert_whole(store)
    store.save_index()
    assert (folder / INDEX).read_bytes() == before


def test_an_index_does_not_stand_for_shards_that_are_gone(folder):
    next(folder.glob("one-*")).unlink()
    store = ShardStore(folder)
    assert list(store.keys()) == ["cc"]
    store.save_index()
    assert len(json.loads((folder / INDEX).read_text())["shards"]) == 1


def test_an_index_with_a_flipped_bit_is_not_believed(folder):
    before = (folder / INDEX).read_bytes()
    for place in range(0, len(before), 7):
        content = bytearray(before)
        content[place] ^= 1
        (folder / INDEX).write_bytes(content)
        assert_whole(ShardStore(folder))


def test_a_shard_that_was_made_again_meanwhile_is_not_removed(folder):
    shard = next(folder.glob("one-*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-5])
    store = ShardStore(folder)
    shard.write_bytes(whole)  # by another process
    assert store.remove_damaged() == []
    assert shard.exists()


def test_a_truncated_shard_is_told_and_removed_on_request(folder):
    shard = next(folder.glob("one-*"))
    shard.write_bytes(shard.read_bytes()[:-5])
    store = ShardStore(folder)
    assert store.damaged == [shard]
    assert list(store.keys()) == ["cc"]
    assert store.remove_damaged() == [shard]
    assert not shard.exists()


@pytest.mark.parametrize("place", [-1, 3, 300])
def test_a_flipped_bit_is_told_on_reading(folder, place):
    shard = next(folder.glob("one-*"))
    content = bytearray(shard.read_bytes())
    content[place] ^= 1
    shard.write_bytes(content)
    with pytest.raises(SuiteError, match=r"one-\w+\.safetensors is damaged: remove it and run --task cache again"):
        read_both(ShardStore(folder))


def test_what_the_dead_have_left_of_a_shard_is_removed_and_of_others_kept(folder):
    left, other = folder / ".x.safetensors.999.tmp", folder / ".y.safetensors.999.tmp"
    for path in (left, other):
        path.write_bytes(b"half")
    store = ShardStore(folder)
    store.remove_leftovers("x.safetensors")
    assert not left.exists()
    assert other.exists()
    assert_whole(store)
