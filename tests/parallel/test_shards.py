"""Tensors in buckets and buckets in shards: nothing is lost, nothing is twice."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gm.parallel.shards import Item, Shard, plan

shapes = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=8)


@given(shapes, st.integers(1, 5), st.floats(1e-6, 1e-3))
def test_shards_hold_every_number_once(found, count, megabytes):
    items = [Item(f"w{index}", tuple(shape), len(shape) > 1) for index, shape in enumerate(found)]
    whole = {item.name: np.random.default_rng(3).standard_normal(item.shape).astype(np.float32) for item in items}
    buckets = plan(items, megabytes, count)
    assert [item for bucket in buckets for item in bucket.items] == items
    again = {name: np.full(value.size, np.nan, np.float32) for name, value in whole.items()}
    for bucket in buckets:
        assert bucket.items == tuple(items[bucket.first : bucket.last])
        assert len({item.decays for item in bucket.items}) == 1
        assert len(bucket.items) == 1 or 4 * sum(item.size for item in bucket.items) <= megabytes * 1e6
        assert 0 <= bucket.padding < count
        for index in range(count):
            shard = Shard(bucket, index, count)
            numbers = shard.of(whole.__getitem__)
            assert len(numbers) == shard.size == bucket.length / count
            for piece in shard.pieces():
                assert np.isnan(again[piece.item.name][piece.begin : piece.end]).all()
                part = numbers[piece.place : piece.place + piece.end - piece.begin]
                again[piece.item.name][piece.begin : piece.end] = part
    for name, value in whole.items():
        np.testing.assert_array_equal(again[name].reshape(value.shape), value)
