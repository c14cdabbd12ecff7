"""Which numbers of which tensors lie in which bucket, and which of these a device keeps when several share them out."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class Item:
    """A tensor to put into a bucket; ``decays``: weight decay applies to it."""

    name: str
    shape: tuple[int, ...]
    decays: bool

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Bucket:
    """Items one after the other, the first at number ``first`` of all of them; zeros fill it up to ``length``."""

    items: tuple[Item, ...]
    first: int
    length: int

    @property
    def decays(self) -> bool:
        return self.items[0].decays

    @property
    def last(self) -> int:
        return self.first + len(self.items)

    @property
    def starts(self) -> tuple[int, ...]:
        """Where each item begins."""
        return tuple(sum(item.size for item in self.items[:count]) for count in range(len(self.items)))

    @property
    def padding(self) -> int:
        return self.length - sum(item.size for item in self.items)


def plan(items: Sequence[Item], megabytes: float, parts: int = 1) -> list[Bucket]:
    """Divide ``items``, in their order, into buckets of about this size in float32, whose length ``parts`` divides.

    A bucket holds one class of weight decay. An item larger than a bucket is one by itself.
    """
    room, buckets = megabytes * 1e6 / FLOAT32, []
    kept: list[Item] = []
    for index, item in enumerate([*items, None]):
        full = kept and (
            item is None or item.decays != kept[0].decays or sum(one.size for one in kept) + item.size > room
        )
        if full:
            length = -(-sum(one.size for one in kept) // parts) * parts
            buckets.append(Bucket(tuple(kept), index - len(kept), length))
            kept = []
        if item is not None:
            kept.append(item)
    return buckets


@dataclass(frozen=True)
class Piece:
    """Numbers ``begin`` to ``end`` of a flattened item, which lie at ``place`` of a shard."""

    item: Item
    begin: int
    end: int
    place: int


@dataclass(frozen=True)
class Shard:
    """Part ``index`` of a bucket divided evenly into ``count``."""

    bucket: Bucket
    index: int
    count: int

    @property
    def size(self) -> int:
        return self.bucket.length // self.count

    def pieces(self) -> Iterator[Piece]:
        """Of every item that reaches into the shard, in order."""
        first, last = self.index * self.size, (self.index + 1) * self.size
        for item, start in zip(self.bucket.items, self.bucket.starts):
            begin, end = max(first, start), min(last, start + item.size)
            if begin < end:
                yield Piece(item, begin - start, end - start, begin - first)

    def of(self, whole: Callable[[str], np.ndarray]) -> np.ndarray:
        """The shard's numbers, (size,) float32; ``whole`` gives an item's tensor by name."""
        numbers = np.zeros(self.size, np.float32)
        for piece in self.pieces():
            values = whole(piece.item.name).reshape(-1)[piece.begin : piece.end]
            numbers[piece.place : piece.place + len(values)] = values
        return numbers
