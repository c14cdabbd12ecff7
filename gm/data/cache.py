"""The cache: what the frozen networks make of every picture and caption, kept under the hash of all it depends on.

``--task cache`` fills it, training reads it. An entry's key is the hash of what the entry follows from, so a changed
picture, caption, crop, network, tokenizer or precision has another key: stale entries are never found, and what is
found again is never made again.

    <cache.path>/latents/*.safetensors   posterior moments (8, h, w) of framed pictures
    <cache.path>/texts/*.safetensors     context (77, C) and pooled (P,) of captions, the empty one among them
    <cache.path>/pictures.json, weights.json   hashes of files that have not changed since
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gm.config import Config
from gm.data import folder, transforms
from gm.data.cache_store import ShardStore, damaged, shard_name
from gm.data.encoders import Encoders, NetworkEncoders
from gm.data.folder import Sample
from gm.data.geometry import Geometry
from gm.data.notes import FileNotes, hash_file
from gm.data.prefetch import ahead, for_each
from gm.data.tokens import Tokenizers
from gm.data.transforms import BadPictureError, Framing
from gm.errors import SuiteError

SHARD_ENTRIES = 256  # a multiple of every batch below; 67 MB of latents or 81 MB of text at SDXL's size
TEXT_BATCH = 32
PIXELS_PER_BATCH = 4 * 1024 * 1024
DTYPES = {"fp16": np.float16, "fp32": np.float32}
EMPTY = ""  # the caption of a sample whose caption is dropped
FORMAT = 1  # counted up when entries change their meaning

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Keys:
    """Names of entries: hashes of everything an entry depends on."""

    picture_hash: str
    text_hash: str
    dtype: str

    def latents(self, content: str, framing: Framing) -> str:
        """Of the picture with the bytes' hash ``content``, framed like that."""
        how = [transforms.FILTER, *framing.resized, framing.top, framing.left, *framing.target, framing.flip]
        return _hash("latents", content, how, self.picture_hash, self.dtype)

    def text(self, caption: str) -> str:
        return _hash("text", caption, self.text_hash, self.dtype)


@dataclass
class _Inputs:
    """What both building and reading start from."""

    samples: list[Sample]
    geometry: Geometry
    encoders: Encoders
    tokenizers: Tokenizers
    keys: Keys
    latents: ShardStore
    texts: ShardStore
    contents: dict[str, str]  # sample id -> hash of the picture file
    variants: int

    @classmethod
    def gather(
        cls, config, samples: list[Sample], encoders: Encoders | None, tokenizers: Tokenizers | None
    ) -> "_Inputs":
        path = Path(config.cache.path)
        encoders = encoders or NetworkEncoders(config)
        tokenizers = tokenizers or Tokenizers.load(config.model.tokenizer, config.model.tokenizer_2)
        geometry = Geometry.of(config)
        keys = Keys(encoders.picture_hash, _hash(encoders.text_hash, tokenizers.hash), config.cache.dtype)
        contents = _content_hashes(samples, FileNotes(path / "pictures.json"))
        return cls(
            samples,
            geometry,
            encoders,
            tokenizers,
            keys,
            ShardStore(path / "latents"),
            ShardStore(path / "texts"),
            contents,
            variants=config.cache.variants if geometry.varies else 1,
        )

    def latent_key(self, sample: Sample, variant: int) -> tuple[str, Framing]:
        framing = self.geometry.framing(sample, variant)
        return self.keys.latents(self.contents[sample.id], framing), framing

    def needed_latents(self) -> dict[str, tuple[Sample, Framing]]:
        needed: dict[str, tuple[Sample, Framing]] = {}
        for sample in self.samples:
            for variant in range(self.variants):
                key, framing = self.latent_key(sample, variant)
                needed.setdefault(key, (sample, framing))
        return needed

    def refused_samples(self) -> dict[str, str]:
        """Ids of samples whose picture is known to be broken, with the reason."""
        refused = self.latents.refused
        if not refused:
            return {}
        keys = (
            (sample.id, self.latent_key(sample, variant)[0])
            for sample in self.samples
            for variant in range(self.variants)
        )
        return {id: refused[key] for id, key in keys if key in refused}

    def needed_texts(self) -> dict[str, str]:
        captions = {caption for sample in self.samples for caption in sample.captions} | {EMPTY}
        return {self.keys.text(caption): caption for caption in captions}


def build(
    config: Config,
    encoders: Encoders | None = None,
    tokenizers: Tokenizers | None = None,
    rank: int = 0,
    ranks: int = 1,
    progress: bool = True,
) -> None:
    """Make every entry that training with ``config`` needs and that is not there; says what it did in the log.

    Both kinds are made unless only one of ``cache.latent`` and ``cache.text_embedding`` is asked for. Shards are the
    same bytes however often the work is interrupted. Several ranks share the work. Raises SuiteError.
    """
    both = config.cache.latent == config.cache.text_embedding
    samples = folder.scan(config.data.path, config.data.missing_caption, config.data.on_bad_sample)
    inputs = _Inputs.gather(config, samples, encoders, tokenizers)
    pictures = inputs.needed_latents() if both or config.cache.latent else {}
    captions = inputs.needed_texts() if both or config.cache.text_embedding else {}
    work = _Work(config, inputs, rank, ranks, progress)
    for store in (inputs.latents, inputs.texts):
        store.remove_leftovers()
        for path in store.remove_damaged():
            log.warning("cache: %s is damaged; it is made again", path)
    made = work.encode_pictures(pictures), work.encode_captions(captions)
    for store in (inputs.latents, inputs.texts):
        store.save_index()
    did = f"{made[0]} and {made[1]} encoded now" if any(made) else "all there: nothing to do"
    log.info("cache %s: %d pictures and %d captions needed, %s", config.cache.path, len(pictures), len(captions), did)


class _Work:
    """The encoding of what is missing, shard by shard."""

    def __init__(self, config: Config, inputs: _Inputs, rank: int, ranks: int, progress: bool):
        self.inputs = inputs
        self.dtype = DTYPES[config.cache.dtype]
        self.skip = config.data.on_bad_sample == "skip"
        self.workers = max(1, config.data.num_parallel_workers)
        self.rank, self.ranks = rank, ranks
        self.progress = progress

    def encode_pictures(self, needed: Mapping[str, tuple[Sample, Framing]]) -> int:
        """Returns how many were encoded."""
        store = self.inputs.latents
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
                framing = needed[keys[0]][1]
                entries, reasons = {}, {}
                for batch in _batches(zip(keys, decoded), _picture_batch(framing)):
                    reasons |= {key: picture for key, picture in batch if isinstance(picture, str)}
                    good = [(key, picture) for key, picture in batch if not isinstance(picture, str)]
                    if good:
                        pictures = _padded([picture for _, picture in good], _picture_batch(framing))
                        moments = self.inputs.encoders.encode_pictures(pictures)
                        for (key, _), value in zip(good, moments):
                            entries[key] = {"moments": self._finite(value, f"picture {needed[key][0].id}")}
                    bar.update(len(batch))
                self._refuse({key: needed[key][0].id for key in reasons}, reasons)
                store.write(label, entries, reasons)
        return len(every)

    def encode_captions(self, needed: Mapping[str, str]) -> int:
        """Returns how many were encoded."""
        store = self.inputs.texts
        shards = self._shards({"text": sorted(key for key in needed if key not in store)})
        with self._bar(sum(len(keys) for _, keys in shards), "caption") as bar:
            for label, keys in shards:
                entries = {}
                for batch in _batches(keys, TEXT_BATCH):
                    captions = [needed[key] for key in batch]
                    ids = self.inputs.tokenizers.encode(_filled(captions, TEXT_BATCH))
                    for key, caption, context, pooled in zip(batch, captions, *self.inputs.encoders.encode_text(*ids)):
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
        return [
            (label, keys)
            for label, keys in shards
            if int(hashlib.blake2b(shard_name(label, keys).encode(), digest_size=8).hexdigest(), 16) % self.ranks
            == self.rank
        ]

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
            told = ", ".join(
                f"{name} ({reasons[key]})" for key, name in sorted(names.items(), key=lambda item: item[1])
            )
            raise SuiteError(f"broken pictures: {told}; mend or remove them, or go on with --on_bad_sample skip")
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
    inputs = _Inputs.gather(config, samples, encoders, tokenizers)
    for path in inputs.latents.damaged + inputs.texts.damaged:
        raise damaged(path)
    if config.cache.latent:
        needed = inputs.needed_latents()
        refused = inputs.refused_samples()
        if refused and config.data.on_bad_sample != "skip":
            told = ", ".join(f"{name} ({reason})" for name, reason in sorted(refused.items()))
            raise SuiteError(f"broken pictures: {told}; mend or remove them, or go on with --on_bad_sample skip")
        inputs.samples = [sample for sample in samples if sample.id not in refused]
        lacking = [
            item[0].id for key, item in needed.items() if key not in inputs.latents and item[0].id not in refused
        ]
        _complain(config.cache.path, "latents of pictures", lacking, len(needed))
    if config.cache.text_embedding:
        needed = inputs.needed_texts()
        lacking = [repr(caption) for key, caption in needed.items() if key not in inputs.texts]
        _complain(config.cache.path, "states of captions", lacking, len(needed))
    return Cache(inputs, config.cache.latent, config.cache.text_embedding)


class Cache:
    """Read access; all arrays come back as float32. ``samples`` are the usable ones."""

    def __init__(self, inputs: _Inputs, has_latents: bool, has_texts: bool):
        self._inputs = inputs
        self.samples = inputs.samples
        self.has_latents = has_latents
        self.has_texts = has_texts

    def framing(self, sample: Sample, epoch: int) -> Framing:
        """How the sample is framed in that epoch: the variants take turns."""
        return self._inputs.geometry.framing(sample, epoch % self._inputs.variants)

    def moments(self, sample: Sample, epoch: int) -> np.ndarray:
        """Mean and log variance of the VAE's posterior: (8, h, w) float32."""
        key, _ = self._inputs.latent_key(sample, epoch % self._inputs.variants)
        return self._inputs.latents.read(key)["moments"].astype(np.float32)

    def text(self, caption: str) -> tuple[np.ndarray, np.ndarray]:
        """Context (77, C) and pooled (P,) float32 of a caption; "" is the empty prompt."""
        entry = self._inputs.texts.read(self._inputs.keys.text(caption))
        return entry["context"].astype(np.float32), entry["pooled"].astype(np.float32)


def _content_hashes(samples: Sequence[Sample], notes: FileNotes) -> dict[str, str]:
    def content(sample: Sample) -> str:
        try:
            return notes.remember(sample.picture_path, "bytes", hash_file)
        except OSError as error:
            raise SuiteError(f"picture {sample.id} cannot be read any more ({error.strerror}): run again") from None

    contents = for_each(content, samples, workers=4)
    notes.save()
    return {sample.id: value for sample, value in zip(samples, contents)}


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


def _padded(pictures: list[np.ndarray], size: int) -> np.ndarray:
    return np.stack(_filled(pictures, size))


def _hash(*parts) -> str:
    return hashlib.blake2b(json.dumps([FORMAT, *parts]).encode(), digest_size=16).hexdigest()
