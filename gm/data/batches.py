"""The training data as the step reads it: endless batches of arrays from any point of any epoch."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gm.config import Config
from gm.data import cache as stored
from gm.data import datasets, transforms
from gm.data.cache import Cache
from gm.data.cache_plan import EMPTY
from gm.data.encoders import Encoders, NetworkEncoders
from gm.data.geometry import Geometry
from gm.data.noising import Noising
from gm.data.order import GlobalBatch, datasets_of, epoch_batches, strata
from gm.data.prefetch import Prefetcher, ahead
from gm.data.randomness import generator
from gm.data.sample import Sample
from gm.data.tokens import Tokenizers
from gm.data.transforms import BadPictureError
from gm.diffusion.timesteps import stratify
from gm.errors import SuiteError, UsageError
from gm.models.architecture import ModelArchitecture

LATENT_CHANNELS = 4
PREFETCHED_BATCHES = 3
# What a batch holds, in this order.
FIELDS = ("moments", "posterior_noise", "noise", "input_noise", "context", "pooled", "time_ids", "timesteps")
FIELDS += ("alpha", "sigma", "target_noise", "target_latents", "weight", "inverse_huber_c")
# The same where the step itself encodes: pictures and token ids in place of what the encoders make of them.
PICTURE_FIELDS = tuple({"moments": "pictures", "context": "ids"}.get(name, name) for name in FIELDS if name != "pooled")

Cursor = tuple[int, int]  # epoch, steps of it that are done
Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class _Drawn:
    """All of a sample in a step that needs no network. ``picture`` or ``moments``, the other one is None."""

    picture: np.ndarray | None  # (3, H, W)
    moments: np.ndarray | None  # (8, h, w)
    caption: str
    text: tuple[np.ndarray, np.ndarray] | None  # context (77, C), pooled (P,)
    time_ids: np.ndarray  # (N,)
    timestep_uniform: float
    noise: np.ndarray  # (4, h, w)
    input_noise: np.ndarray  # (4, h, w)
    posterior_noise: np.ndarray  # (4, h, w)


@dataclass(frozen=True)
class _Part:
    """What one rank has of a step in one forward pass: ``step`` counts from the first of the run."""

    step: int
    positions: np.ndarray  # (B,)
    visits: np.ndarray  # (B,)
    weights: np.ndarray  # (B,)
    strata: np.ndarray  # (B,)
    samples_of_step: int  # that count, over all ranks and forward passes
    after: Cursor


def encodes_in_step(config: Config) -> bool:
    """Whether the training step takes pictures and captions, and its graph has the encoders in it."""
    return not config.cache.latent and (config.train.text_encoders or not config.launch.multi_graph)


class Batches(Iterator[Batch]):
    """Batches of one rank, one for every forward pass, without end; all randomness belongs to the samples.

    A batch is a dict of float32 arrays, in this order: ``moments`` (B, 8, h, w), ``posterior_noise``, ``noise`` and
    ``input_noise`` (B, 4, h, w), ``context`` (B, 77, C), ``pooled`` (B, P), ``time_ids`` (B, N), and, each (B,),
    ``timesteps``, ``alpha``, ``sigma``, ``target_noise``, ``target_latents``, ``weight``, ``inverse_huber_c``.

    ``size_numbers`` is N, and what the model is told of each picture (``gm.models.architecture.size_numbers``). A model
    that has no pooled state is given ``pooled`` (B, 0).

    With ``as_pictures`` nothing is encoded: ``pictures`` (B, 3, H, W) in place of ``moments``, and ``ids`` (B, text
    encoders, 77) int32 in place of ``context`` and ``pooled``.

    A training step takes ``gradient_accumulation_steps`` batches on each of ``size`` ranks. What they hold together is
    the same however it is divided. ``cursor`` is (epoch, steps of it that are done); a step counts as done when its
    last batch was handed out. Use as a context manager, or ``close()`` it: threads read ahead.
    """

    def __init__(
        self,
        config: Config,
        samples: list[Sample],
        cache: Cache | None = None,
        encoders: Encoders | None = None,
        tokenizers: Tokenizers | None = None,
        cursor: Cursor = (0, 0),
        rank: int = 0,
        size: int = 1,
        size_numbers: int = 6,
        as_pictures: bool = False,
    ):
        self._data, self._seed, self._size_numbers = config.data, config.train.seed, size_numbers
        self._stratified = config.diffusion.stratified_timesteps
        self._as_pictures = as_pictures
        self._samples = cache.samples if cache is not None else samples
        self._cache, self._encoders, self._tokenizers = cache, encoders, tokenizers
        self._latents_cached = cache is not None and cache.has_latents
        self._texts_cached = cache is not None and cache.has_texts
        if (encoders is None and not (self._latents_cached and self._texts_cached)) or (
            tokenizers is None and not self._texts_cached
        ):
            raise ValueError("what is not in the cache needs encoders and tokenizers")
        self._geometry = Geometry.of(config)
        self._sizes = [self._geometry.bucket(sample) for sample in self._samples]
        self._datasets, self._repeats = datasets_of(self._samples)
        self._loss_weights = np.array([sample.loss_weight for sample in self._samples], np.float32)
        try:
            self._noising = Noising(config.diffusion)
        except ValueError as error:
            raise UsageError(str(error)) from None
        self._batch = config.data.per_batch_size
        self._rank, self._ranks = rank, size
        self._accumulation = config.optim.gradient_accumulation_steps
        self.steps_per_epoch = len(self._plan(0))
        if self.steps_per_epoch == 0:
            raise UsageError(
                f"{len(self._samples)} pictures do not fill one batch of {self._global_size} and --drop_last drops "
                "the rest: lower --per_batch_size or do without --drop_last"
            )
        epoch, index = cursor
        self._cursor = (epoch + index // self.steps_per_epoch, index % self.steps_per_epoch)
        self._pool = ThreadPoolExecutor(max(1, config.data.num_parallel_workers), thread_name_prefix="samples")
        self._source = Prefetcher(self._collated(self._cursor), PREFETCHED_BATCHES)

    @classmethod
    def of(
        cls,
        config: Config,
        cursor: Cursor = (0, 0),
        rank: int = 0,
        size: int = 1,
        encoders: Encoders | None = None,
        tokenizers: Tokenizers | None = None,
        samples: list[Sample] | None = None,
        report: Path | None = None,
    ) -> "Batches":
        """From the folder, the cache and the networks that ``config`` names; only those that are needed are built.

        What is given is taken in place of these. ``report``: a file for the list of samples that cannot be used.
        """
        if samples is None:
            samples = datasets.scan(config.data, report)
        encoders = encoders or NetworkEncoders(config)
        tokenizers = tokenizers or Tokenizers.of(config.model)
        cached = config.cache.latent or config.cache.text_embedding
        opened = stored.open(config, samples, encoders, tokenizers) if cached else None
        model = encoders.architecture
        _check_sizes(config, samples, model)
        join = encodes_in_step(config)
        return cls(config, samples, opened, encoders, tokenizers, cursor, rank, size, model.size_numbers, join)

    @property
    def cursor(self) -> Cursor:
        """Where to go on after the steps that are done: (epoch, index of the step in it)."""
        return self._cursor

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The (height, width) that occur: the training step compiles once for each."""
        return sorted(set(self._sizes))

    def __next__(self) -> Batch:
        batch, cursor = next(self._source)
        # The networks run in the caller's thread, between its own steps, and never beside them.
        self._cursor = cursor
        if self._as_pictures:
            ids = self._tokenizers.encode(batch["captions"])
            self._encoders.check_ids(*ids)
            batch["ids"] = np.stack(ids, axis=1)
            return {name: batch[name] for name in PICTURE_FIELDS}
        pictures, captions = batch.pop("pictures", None), batch.pop("captions", None)
        if pictures is not None:
            batch["moments"] = np.asarray(self._encoders.encode_pictures(pictures), np.float32)
        if captions is not None:
            context, pooled = self._encoders.encode_text(*self._tokenizers.encode(captions))
            batch["context"], batch["pooled"] = np.asarray(context, np.float32), np.asarray(pooled, np.float32)
        return {name: batch[name] for name in FIELDS}

    def close(self) -> None:
        """Stop reading ahead."""
        self._source.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _global_size(self) -> int:
        return self._batch * self._ranks * self._accumulation

    def _plan(self, epoch: int) -> list[GlobalBatch]:
        data = self._data
        order = (self._seed, epoch, data.shuffle, data.drop_last)
        return epoch_batches(self._sizes, self._global_size, *order, self._datasets, self._repeats)

    def _collated(self, cursor: Cursor) -> Iterator[tuple[dict, Cursor]]:
        """Batches but for what networks must add, each with the cursor after it."""
        parts = self._parts(cursor)
        pending: deque[_Part] = deque()

        def items() -> Iterator[tuple[int, int, int]]:
            for part in parts:
                pending.append(part)
                for position, visit in zip(part.positions, part.visits):
                    yield int(visit), part.step, int(position)

        drawn = ahead(self._pool, lambda item: self._draw(*item), items(), PREFETCHED_BATCHES * self._batch)
        try:
            while True:
                samples = [next(drawn) for _ in range(self._batch)]
                part = pending.popleft()
                yield self._collate(samples, part), part.after
        finally:
            drawn.close()

    def _parts(self, cursor: Cursor) -> Iterator[_Part]:
        """Every batch of this rank from the cursor on."""
        epoch, index = cursor
        while True:
            steps = self._plan(epoch)
            for step in range(index, len(steps)):
                whole, places = steps[step], strata(steps[step], self._seed, epoch, step)
                for turn in range(self._accumulation):
                    start = (turn * self._ranks + self._rank) * self._batch
                    mine = slice(start, start + self._batch)
                    done = step + (turn == self._accumulation - 1)
                    after = (epoch + 1, 0) if done == len(steps) else (epoch, done)
                    positions = whole.positions[mine]
                    weights = whole.weights[mine] * self._loss_weights[positions]
                    number = epoch * len(steps) + step
                    yield _Part(number, positions, whole.visits[mine], weights, places[mine], whole.real, after)
            epoch, index = epoch + 1, 0

    def _draw(self, visit: int, step: int, position: int) -> _Drawn:
        sample = self._samples[position]

        def rng(purpose: str) -> np.random.Generator:
            return generator(self._seed, visit, sample.id, purpose)

        picture = moments = None
        if self._latents_cached:
            framing = self._cache.framing(sample, visit)
            moments = self._cache.moments(sample, visit)
        else:
            framing = self._geometry.framing(sample, visit)
            picture = _decode(sample, framing)
        caption, time_ids = self._caption(sample, rng), self._time_ids(framing)
        if rng("caption_dropout").random() < self._data.caption_dropout:
            caption, time_ids = EMPTY, np.zeros_like(time_ids)
        height, width = framing.target
        shape = (LATENT_CHANNELS, height // 8, width // 8)
        return _Drawn(
            picture,
            moments,
            caption,
            self._cache.text(caption) if self._texts_cached else None,
            time_ids,
            rng("timestep").random(),
            *self._noising.noise(rng, shape, step),
            rng("posterior").standard_normal(shape, np.float32),
        )

    def _time_ids(self, framing: transforms.Framing) -> np.ndarray:
        return framing.time_ids(self._size_numbers, self._data.aesthetic_score)

    def _caption(self, sample: Sample, rng: Callable[[str], np.random.Generator]) -> str:
        if len(sample.captions) == 1:
            return sample.captions[0]
        return sample.captions[int(rng("caption").integers(len(sample.captions)))]

    def _collate(self, samples: list[_Drawn], part: _Part) -> dict:
        uniforms = np.array([sample.timestep_uniform for sample in samples])
        if self._stratified:
            uniforms = stratify(uniforms, part.strata, part.samples_of_step)
        batch = {
            "posterior_noise": np.stack([sample.posterior_noise for sample in samples]),
            "noise": np.stack([sample.noise for sample in samples]),
            "input_noise": np.stack([sample.input_noise for sample in samples]),
            "time_ids": np.stack([sample.time_ids for sample in samples]),
            **self._noising.numbers(uniforms, part.weights),
        }
        if self._latents_cached:
            batch["moments"] = np.stack([sample.moments for sample in samples])
        else:
            batch["pictures"] = np.stack([sample.picture for sample in samples])
        if self._texts_cached:
            batch["context"], batch["pooled"] = (
                np.stack(states) for states in zip(*(sample.text for sample in samples))
            )
        else:
            batch["captions"] = [sample.caption for sample in samples]
        return batch


def _check_sizes(config: Config, samples: list[Sample], model: ModelArchitecture) -> None:
    """Raises UsageError if pictures would be trained at a size that the UNet cannot halve evenly."""
    geometry = Geometry.of(config)
    for height, width in sorted({geometry.bucket(sample) for sample in samples}):
        if model.unet and (height % model.granularity or width % model.granularity):
            raise UsageError(
                f"pictures would be trained at {width}x{height} and this model needs sides that are multiples of "
                f"{model.granularity}: change --resolution"
            )


def _decode(sample: Sample, framing: transforms.Framing) -> np.ndarray:
    try:
        return transforms.decode(sample.picture, framing)
    except BadPictureError as error:
        remedy = "mend or remove it; --verify pixels finds such pictures at the start"
        raise SuiteError(f"picture {sample.id} cannot be used: {error}; {remedy}") from None
