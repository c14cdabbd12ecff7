"""Making entries of the cache: pictures and captions come ready for the encoder, shards go, and it is never idle."""

import logging
import math
import shutil
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from gm.config import Config
from gm.data import datasets, decoding, transforms
from gm.data.cache_plan import Plan
from gm.data.cache_store import ShardStore, shard_name
from gm.data.claims import PATIENCE, PAUSE, Claims
from gm.data.prefetch import Prefetcher, ahead
from gm.data.sample import Sample
from gm.data.transforms import Framing
from gm.errors import SuiteError

SHARD_ENTRIES = 256  # a multiple of every batch below; 67 MB of latents or 81 MB of text at SDXL's size
TEXT_BATCH = 32
PIXELS_PER_BATCH = 4 * 1024 * 1024
READY_BATCHES = 2
DTYPES = {"fp16": np.float16, "fp32": np.float32}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """A shard to make: ``label`` says to people what is in it."""

    label: str
    keys: tuple[str, ...]

    @property
    def name(self) -> str:
        return shard_name(self.label, self.keys)


@dataclass(frozen=True)
class Batch:
    """A part of a shard that is ready to be encoded: what the encoder takes, filled up to one size for one compile."""

    shard: Shard
    keys: list[str]
    arrays: tuple[np.ndarray, ...]
    refused: dict[str, str] = field(default_factory=dict)  # keys that cannot be encoded, and why


class Work:
    """The entries of one store. A subclass says how they are made: ``prepared``, ``encode`` and ``named``."""

    unit: str  # for people, of many entries and
    one: str
    needed: Mapping[str, object]  # by key, of those that are there, too

    def __init__(self, config: Config, plan: Plan, store: ShardStore, missing: Mapping[str, Sequence[str]], show: bool):
        """``missing``: labels and the keys of the shards to make under each, sorted."""
        self.plan, self.store, self.show = plan, store, show
        self.dtype = DTYPES[config.cache.dtype]
        self.skip, self.left_out = config.data.on_bad_sample == "skip", 0
        # What is there already went in whole shards, so what is left falls into the same ones as if nothing had been.
        self.shards = [
            Shard(label, keys) for label, every in missing.items() for keys in _batches(every, SHARD_ENTRIES)
        ]
        self.total = _entries(self.shards)
        self.estimated = False
        self.most_left_out = datasets.most_skipped(len(self.needed))

    def prepared(self, shards: Iterator[Shard]) -> Iterator[Batch]:
        """Batches of the shards, in order. Runs in a thread of its own."""
        raise NotImplementedError

    def encode(self, *arrays: np.ndarray) -> dict[str, np.ndarray]:
        """The parts of the entries of a batch."""
        raise NotImplementedError

    def named(self, key: str) -> str:
        """The picture or caption of an entry, for people."""
        raise NotImplementedError

    def do(self, wait: bool) -> int:
        """Make the shards that nobody has made or is making; returns how many entries that were.

        With ``wait`` the others' shards are waited for, and made here if they leave them.
        """
        made, seen, told, alone = 0, time.monotonic(), False, False
        left = [shard for shard in self.shards if not self._exists(shard)]
        with self._bar(left) as bar, Claims(self.store.folder) as claims, logging_redirect_tqdm():
            while left:
                made += self._make(self._claimed(left, claims, bar, alone), claims, bar)
                before, left = left, [shard for shard in left if not self._exists(shard)]
                bar.n = self.total - _entries(left)
                bar.refresh()
                if not wait:
                    break
                if len(left) < len(before):
                    seen = time.monotonic()
                elif left:
                    owner = claims.owner(left[0].name)
                    if time.monotonic() - seen > PATIENCE:
                        log.warning("cache: no sign of %s for %d s: its share is made here as well", owner, PATIENCE)
                        alone = True
                    elif not told:
                        log.info("cache: waiting for %s, which makes the last %s", owner, self.unit)
                        told = True
                    time.sleep(PAUSE)
            if wait:
                claims.clear()
        return made

    def _bar(self, left: Sequence[Shard]) -> tqdm:
        shown = {"unit": f" {self.unit}", "desc": f"cache {self.unit}", "disable": not self.show or not left}
        return tqdm(total=self.total, initial=self.total - _entries(left), dynamic_ncols=True, **shown)

    def _claimed(self, shards: Iterable[Shard], claims: Claims, bar: tqdm, alone: bool) -> Iterator[Shard]:
        """Those that nobody has made or is making; with ``alone`` those that others are making, too."""
        for shard in shards:
            if self._exists(shard):
                bar.update(len(shard.keys))
                continue
            mine = claims.take(shard.name)
            if mine and self._exists(shard):  # made just now by the one that had the claim
                claims.drop(shard.name)
            elif mine or alone:
                if mine:
                    self.store.remove_leftovers(shard.name)
                yield shard

    def _exists(self, shard: Shard) -> bool:
        return (self.store.folder / shard.name).exists()

    def _make(self, shards: Iterator[Shard], claims: Claims, bar: tqdm) -> int:
        """Encode and write; returns how many entries."""
        made, entries, refused = 0, {}, {}
        written: Future | None = None
        with ThreadPoolExecutor(1) as writer, closing(Prefetcher(self.prepared(shards), READY_BATCHES)) as batches:
            for batch in batches:
                if batch.refused:
                    self._refuse(batch.refused)
                refused |= batch.refused
                parts = self._stored(self.encode(*batch.arrays), batch.keys) if batch.keys else {}
                for row, key in enumerate(batch.keys):
                    entries[key] = {name: values[row] for name, values in parts.items()}
                self._look_for_room(entries)
                count = len(batch.keys) + len(batch.refused)
                made += count
                bar.update(count)
                if len(entries) + len(refused) == len(batch.shard.keys):
                    if written is not None:
                        written.result()
                    written = writer.submit(self._write, batch.shard, entries, refused, claims)
                    entries, refused = {}, {}
            if written is not None:
                written.result()
        return made

    def _refuse(self, reasons: Mapping[str, str]) -> None:
        """Go on without these keys, or raise SuiteError."""
        if not self.skip:
            raise broken({self.named(key): reason for key, reason in reasons.items()})
        for key, reason in reasons.items():
            log.warning("cache: %s %s left out: %s", self.one, self.named(key), reason)
        self.left_out += len(reasons)
        if self.left_out > self.most_left_out:
            raise SuiteError(
                f"{self.left_out} of {len(self.needed)} {self.unit} cannot be used, which this log names, and not all "
                f"were looked at; {datasets.TOO_MANY}"
            )

    def _write(self, shard: Shard, entries: dict, refused: dict[str, str], claims: Claims) -> None:
        self.store.write(shard.label, entries, refused)
        claims.drop(shard.name)

    def _stored(self, parts: Mapping[str, np.ndarray], keys: Sequence[str]) -> dict[str, np.ndarray]:
        """The parts as they are kept, without what only filled the batch up."""
        kept = {}
        for name, values in parts.items():
            values = np.asarray(values)[: len(keys)]
            with np.errstate(over="ignore"):
                kept[name] = values.astype(self.dtype)
            finite = np.isfinite(kept[name])
            if not finite.all():
                row = int(np.argwhere(~finite)[0][0])
                lossless = np.isfinite(values[row]).all()
                remedy = "use --cache_dtype fp32" if lossless else "check the weights and the precision of the encoders"
                raise SuiteError(
                    f"{self.one} {self.named(keys[row])} encodes to values that are not numbers in "
                    f"{kept[name].dtype}: {remedy}"
                )
        return kept

    def _look_for_room(self, entries: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Once the first entries say how large they are. Raises SuiteError rather than fill the disk for hours."""
        if self.estimated or not entries:
            return
        self.estimated = True
        size = sum(value.nbytes for value in next(iter(entries.values())).values())
        count = _entries([shard for shard in self.shards if not self._exists(shard)])
        needed, disk = size * count, shutil.disk_usage(_existing(self.store.folder))
        if disk.total and needed > disk.free:  # some network disks tell nothing but zeros
            raise SuiteError(
                f"the cache of {count} {self.unit} takes {needed / 1e9:.2f} GB and the disk of "
                f"{self.store.folder} has {disk.free / 1e9:.2f} GB left: free some, or choose another --cache_path"
            )


class Pictures(Work):
    """Posterior moments of framed pictures."""

    unit, one = "pictures", "picture"

    def __init__(self, config: Config, plan: Plan, needed: Mapping[str, tuple[Sample, Framing]], show: bool):
        self.needed = needed
        missing: dict[str, list[str]] = {}
        for key in sorted(key for key in needed if key not in plan.latents and key not in plan.latents.refused):
            height, width = needed[key][1].target
            missing.setdefault(f"{height}x{width}", []).append(key)
        super().__init__(config, plan, plan.latents, missing, show)
        self.workers = config.data.num_parallel_workers
        largest = max((pictures_at_once(*needed[shard.keys[0]][1].target) for shard in self.shards), default=0)
        self.ahead = 2 * largest + self.workers
        self.pixels = sum(math.prod(needed[key][1].original) for shard in self.shards for key in shard.keys)

    def named(self, key: str) -> str:
        return self.needed[key][0].id

    def encode(self, *arrays: np.ndarray) -> dict[str, np.ndarray]:
        return {"moments": self.plan.encoders.encode_pictures(*arrays)}

    def prepared(self, shards: Iterator[Shard]) -> Iterator[Batch]:
        waiting: deque[tuple[Shard, tuple[str, ...], int]] = deque()

        def pictures() -> Iterator[decoding.Picture]:
            for shard in shards:
                size = pictures_at_once(*self.needed[shard.keys[0]][1].target)
                for keys in _batches(shard.keys, size):
                    waiting.append((shard, keys, size))
                    yield from map(self._picture, keys)

        with decoding.Decoders(self.workers, self.pixels) as decoders:
            framed = ahead(decoders.threads, decoders.frame, pictures(), self.ahead)
            try:
                for first in framed:
                    shard, keys, size = waiting.popleft()
                    found = dict(zip(keys, [first, *islice(framed, len(keys) - 1)]))
                    refused = {key: pixels for key, pixels in found.items() if isinstance(pixels, str)}
                    good = {key: pixels for key, pixels in found.items() if key not in refused}
                    arrays = ()
                    if good:
                        arrays = (transforms.normalized(np.stack(_filled(list(good.values()), size))),)
                    yield Batch(shard, list(good), arrays, refused)
            finally:
                framed.close()

    def _picture(self, key: str) -> decoding.Picture:
        sample, framing = self.needed[key]
        return decoding.Picture(sample.id, sample.picture, self.plan.contents[sample.id], framing)


class Captions(Work):
    """States and pooled states of captions."""

    unit, one = "captions", "caption"

    def __init__(self, config: Config, plan: Plan, needed: Mapping[str, str], show: bool):
        self.needed = needed
        missing = sorted(key for key in needed if key not in plan.texts)
        super().__init__(config, plan, plan.texts, {"text": missing}, show)

    def named(self, key: str) -> str:
        return repr(self.needed[key])

    def encode(self, *arrays: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(("context", "pooled"), self.plan.encoders.encode_text(*arrays)))

    def prepared(self, shards: Iterator[Shard]) -> Iterator[Batch]:
        for shard in shards:
            for keys in _batches(shard.keys, TEXT_BATCH):
                captions = [self.needed[key] for key in keys]
                yield Batch(shard, list(keys), self.plan.tokenizers.encode(_filled(captions, TEXT_BATCH)))


def broken(reasons: Mapping[str, str]) -> SuiteError:
    """Pictures that cannot be used, by their names, with the reasons."""
    told = ", ".join(f"{name} ({reason})" for name, reason in sorted(reasons.items()))
    return SuiteError(f"broken pictures: {told}; mend or remove them, or go on with --on_bad_sample skip")


def pictures_at_once(height: int, width: int) -> int:
    """Pictures encoded at once: a power of two that keeps the VAE's memory in bounds."""
    fitting = max(1, min(32, PIXELS_PER_BATCH // (height * width)))
    return 1 << (fitting.bit_length() - 1)


def _entries(shards: Sequence[Shard]) -> int:
    return sum(len(shard.keys) for shard in shards)


def _batches(items: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    for start in range(0, len(items), size):
        yield tuple(items[start : start + size])


def _filled(items: list, size: int) -> list:
    """Repeat the last item up to ``size``: one shape, one compile."""
    return items + items[-1:] * (size - len(items))


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
