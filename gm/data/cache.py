"""The cache: what the frozen networks make of every picture and caption, kept under the hash of all it depends on.

``--task cache`` fills it, training reads it. An entry's key is the hash of what the entry follows from, so a changed
picture, caption, crop, network, tokenizer or precision has another key: stale entries are never found, and what is
found again is never made again.

    <cache.path>/latents/*.safetensors   posterior moments (8, h, w) of framed pictures
    <cache.path>/texts/*.safetensors     context (77, C) and pooled (P,) of captions, the empty one among them
    <cache.path>/pictures.json, weights.json   hashes of files that have not changed since
"""

import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from gm.config import Config
from gm.data import folder, transforms
from gm.data.cache_plan import Plan
from gm.data.cache_store import damaged, shard_name
from gm.data.encoders import Encoders
from gm.data.folder import Sample
from gm.data.prefetch import ahead
from gm.data.tokens import Tokenizers
from gm.data.transforms import BadPictureError, Framing
from gm.errors import SuiteError

SHARD_ENTRIES = 256  # a multiple of every batch below; 67 MB of latents or 81 MB of text at SDXL's size
TEXT_BATCH = 32
PIXELS_PER_BATCH = 4 * 1024 * 1024
DTYPES = {"fp16": np.float16, "fp32": np.float32}

log = logging.getLogger(__name__)


def build(
    config: Config,
    encoders: Encoders | None = None,
    tokenizers: Tokenizers | None = None,
    rank: int = 0,
    ranks: int = 1,
    progress: bool = True,
    samples: list[Sample] | None = None,
) -> None:
    """Make every entry that training with ``config`` needs and that is not there; says what it did in the log.

    Both kinds are made unless only one of ``cache.latent`` and ``cache.text_embedding`` is asked for. Shards are the
    same bytes however often the work is interrupted. Several ranks share the work. ``samples``: only these of the
    folder. Raises SuiteError.
    """
    both = config.cache.latent == config.cache.text_embedding
    if samples is None:
        samples = folder.scan(config.data.path, config.data.missing_caption, config.data.on_bad_sample)
    plan = Plan.gather(config, samples, encoders, tokenizers)
    pictures = plan.needed_latents() if both or config.cache.latent else {}
    captions = plan.needed_texts() if both or config.cache.text_embedding else {}
    work = _Work(config, plan, rank, ranks, progress)
    for store in (plan.latents, plan.texts):
        store.remove_leftovers()
        for path in store.remove_damaged():
            log.warning("cache: %s is damaged; it is made again", path)
    made = work.encode_pictures(pictures), work.encode_captions(captions)
    for store in (plan.latents, plan.texts):
        store.save_index()
    did = f"{made[0]} and {made[1]} encoded now" if any(made) else "all there: nothing to do"
    log.info("cache %s: %d pictures and %d captions needed, %s", config.cache.path, len(pictures), len(captions), did)


class _Work:
    """The encoding of what is missing, shard by shard."""

    def __init__(self, config: Config, plan: Plan, rank: int, ranks: int, progress: bool):
        self.plan = plan
        self.dtype = DTYPES[config.cache.dtype]
        self.skip = config.data.on_bad_sample == "skip"
        self.workers = max(1, config.data.num_parallel_workers)
        self.rank, self.ranks = rank, ranks
        self.progress = progress

    def encode_pictures(self, needed: Mapping[str, tuple[Sample, Framing]]) -> int:
        """Returns how many were encoded."""
        store = self.plan.latents
        self._refuse({key: needed[key][0].id for key in needed if key in store.refused}, store.refused)
        missing: dict[str, list[str]] = {}
        for key in sorted(key for key in needed if key not in store and key not in store.refused):
            height, width = needed[key][1].target
            missing.setdefault(f"{height}x{width}", []).append(key)
        shards = self._shards(missing)
        if not shards:
            return 0
        every = [key for _, keys in shards for key in keys]
        with ThreadPoolExecutor(self.workers) as pool, self._bar(len(every), "picture") as bar:
            size = max(_picture_batch(needed[key][1]) for key in every)
            decoded = ahead(pool, lambda key: _decode(*needed[key]), every, 2 * size)
            for label, keys in shards:
                entries, reasons = {}, {}
                size = _picture_batch(needed[keys[0]][1])
                for batch in _batches(zip(keys, decoded), size):
                    reasons |= {key: picture for key, picture in batch if isinstance(picture, str)}
                    good = {key: picture for key, picture in batch if not isinstance(picture, str)}
                    for key, moments in zip(good, self._moments(list(good.values()), size)):
                        entries[key] = {"moments": self._finite(moments, f"picture {needed[key][0].id}")}
                    bar.update(len(batch))
                self._refuse({key: needed[key][0].id for key in reasons}, reasons)
                store.write(label, entries, reasons)
        return len(every)

    def _moments(self, pictures: list[np.ndarray], size: int) -> Iterable[np.ndarray]:
        return self.plan.encoders.encode_pictures(np.stack(_filled(pictures, size))) if pictures else ()

    def encode_captions(self, needed: Mapping[str, str]) -> int:
        """Returns how many were encoded."""
        store = self.plan.texts
        shards = self._shards({"text": sorted(key for key in needed if key not in store)})
        with self._bar(sum(len(keys) for _, keys in shards), "caption") as bar:
            for label, keys in shards:
                entries = {}
                for batch in _batches(keys, TEXT_BATCH):
                    captions = [needed[key] for key in batch]
                    ids = self.plan.tokenizers.encode(_filled(captions, TEXT_BATCH))
                    for key, caption, context, pooled in zip(batch, captions, *self.plan.encoders.encode_text(*ids)):
                        name = f"caption {caption!r}"
                        entries[key] = {"context": self._finite(context, name), "pooled": self._finite(pooled, name)}
                    bar.update(len(batch))
                store.write(label, entries)
        return sum(len(keys) for _, keys in shards)

    def _shards(self, missing: Mapping[str, list[str]]) -> list[tuple[str, list[str]]]:
        """(label, keys) of the shards to make, this rank's share of them.

        The keys are sorted, and what is there already went in whole shards: what is left falls into the same shards as
        if nothing had been there, and belongs to the same rank.
        """
        shards = [(label, keys) for label, every in missing.items() for keys in _batches(every, SHARD_ENTRIES)]
        return [shard for shard in shards if zlib.crc32(shard_name(*shard).encode()) % self.ranks == self.rank]

    def _finite(self, value: np.ndarray, name: str) -> np.ndarray:
        with np.errstate(over="ignore"):
            stored = np.asarray(value).astype(self.dtype)
        if not np.isfinite(stored).all():
            lossless = np.isfinite(value).all()
            remedy = "use --cache_dtype fp32" if lossless else "check the weights and the precision of the encoders"
            raise SuiteError(f"{name} encodes to values that are not numbers in {stored.dtype}: {remedy}")
        return stored

    def _refuse(self, names: Mapping[str, str], reasons: Mapping[str, str]) -> None:
        if names and not self.skip:
            raise _broken({name: reasons[key] for key, name in names.items()})
        for key, name in names.items():
            log.warning("cache: %s left out: %s", name, reasons[key])

    def _bar(self, total: int, unit: str) -> tqdm:
        shown = self.progress and total > 0 and self.rank == 0
        return tqdm(total=total, unit=unit, desc=f"cache {unit}s", disable=not shown, dynamic_ncols=True)


def open(
    config: Config,
    samples: list[Sample] | None = None,
    encoders: Encoders | None = None,
    tokenizers: Tokenizers | None = None,
) -> "Cache":
    """The cache for training with ``config``, which must hold all that is asked of it (``cache.latent``,
    ``cache.text_embedding``). Raises SuiteError that names what is missing."""
    if samples is None:
        samples = folder.scan(config.data.path, config.data.missing_caption, config.data.on_bad_sample)
    plan = Plan.gather(config, samples, encoders, tokenizers)
    for path in plan.latents.damaged + plan.texts.damaged:
        raise damaged(path)
    if config.cache.latent:
        needed = plan.needed_latents()
        refused = plan.refused_samples()
        if refused and config.data.on_bad_sample != "skip":
            raise _broken(refused)
        plan.samples = [sample for sample in samples if sample.id not in refused]
        there = (plan.latents, plan.latents.refused)
        lacking = [sample.id for key, (sample, _) in needed.items() if not any(key in entries for entries in there)]
        _complain(config.cache.path, "latents of pictures", lacking, len(needed))
    if config.cache.text_embedding:
        needed = plan.needed_texts()
        lacking = [repr(caption) for key, caption in needed.items() if key not in plan.texts]
        _complain(config.cache.path, "states of captions", lacking, len(needed))
    return Cache(plan, config.cache.latent, config.cache.text_embedding)


class Cache:
    """Read access; all arrays come back as float32. ``samples`` are the usable ones."""

    def __init__(self, plan: Plan, has_latents: bool, has_texts: bool):
        self._plan = plan
        self.samples = plan.samples
        self.has_latents = has_latents
        self.has_texts = has_texts

    def framing(self, sample: Sample, epoch: int) -> Framing:
        """How the sample is framed in that epoch: the variants take turns."""
        return self._plan.geometry.framing(sample, epoch % self._plan.variants)

    def moments(self, sample: Sample, epoch: int) -> np.ndarray:
        """Mean and log variance of the VAE's posterior: (8, h, w) float32."""
        key, _ = self._plan.latent_key(sample, epoch % self._plan.variants)
        return self._plan.latents.read(key)["moments"].astype(np.float32)

    def text(self, caption: str) -> tuple[np.ndarray, np.ndarray]:
        """Context (77, C) and pooled (P,) float32 of a caption; "" is the empty prompt."""
        entry = self._plan.texts.read(self._plan.keys.text(caption))
        return entry["context"].astype(np.float32), entry["pooled"].astype(np.float32)


def _broken(reasons: Mapping[str, str]) -> SuiteError:
    told = ", ".join(f"{name} ({reason})" for name, reason in sorted(reasons.items()))
    return SuiteError(f"broken pictures: {told}; mend or remove them, or go on with --on_bad_sample skip")


def _complain(path: str, what: str, lacking: list[str], needed: int) -> None:
    if lacking:
        named = ", ".join(sorted(lacking)[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        raise SuiteError(
            f"cache {path} lacks {len(lacking)} of {needed} {what} ({named}): never made, or picture, caption, "
            "framing, weights, tokenizer or precision changed since; run the same command with --task cache"
        )


def _decode(sample: Sample, framing: Framing) -> np.ndarray | str:
    """The framed picture, or why it cannot be had."""
    try:
        return transforms.decode(sample.picture_path, framing)
    except BadPictureError as error:
        return str(error)


def _picture_batch(framing: Framing) -> int:
    """Pictures encoded at once: a power of two that keeps the VAE's memory in bounds."""
    height, width = framing.target
    fitting = max(1, min(32, PIXELS_PER_BATCH // (height * width)))
    return 1 << (fitting.bit_length() - 1)


def _batches(items: Iterable, size: int) -> Iterator[list]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _filled(items: list, size: int) -> list:
    """Repeat the last item up to ``size``: one shape, one compile."""
    return items + items[-1:] * (size - len(items))
