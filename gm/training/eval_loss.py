"""The stable evaluation loss: what the UNet gets wrong on held-out pictures, always at the same timesteps and noise.

A training loss wanders with the timesteps and noise it happens to draw; here both are fixed, so two values differ by
the weights alone, and weights of different runs can be compared (the idea of spacepxl's "demystifying SD finetuning").
Each picture's noise follows from its id. For every timestep t of a fixed grid the picture is noised to t and the UNet
asked at t; the plain mean squared error is averaged over the pictures, then over the timesteps.

It stands here and not in ``gm.evaluation``, which comes after training: both a run and the tools there use it.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor

from gm.compilation import Graph
from gm.config import Config
from gm.config.sections.training import DiffusionConfig
from gm.data import cache as stored
from gm.data import datasets
from gm.data.batches import Batch, Batches
from gm.data.encoders import Encoders
from gm.data.noising import Noising, trained_range
from gm.data.tokens import Tokenizers
from gm.diffusion.steps import inference_timesteps
from gm.errors import UsageError
from gm.training.loss import DiffusionLoss
from gm.training.step import fields_of, tensors

SEED = 0  # of the noise, whatever the run's own seed
SCHEDULE = ("prediction_type", "beta_schedule", "beta_start", "beta_end", "num_train_timesteps")
SCHEDULE += ("rescale_betas_zero_snr",)


@dataclass(frozen=True)
class Evaluation:
    """The loss at each timestep (T,), noisy to clean; ``mean`` is the mean of these."""

    timesteps: np.ndarray
    losses: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.losses.mean())

    def record(self, step: int) -> dict:
        """As a line of ``eval_loss.jsonl``."""
        return {
            "step": step,
            "eval_loss": self.mean,
            "timesteps": [int(timestep) for timestep in self.timesteps],
            "losses": [float(loss) for loss in self.losses],
        }


class _Loss(Graph):
    """The loss alone, without gradients: a graph of its own."""

    def __init__(self, loss: DiffusionLoss):
        super().__init__(auto_prefix=False)
        self.loss = loss

    def construct(self, *batch: Tensor) -> Tensor:
        return self.loss(*batch)[0]


class EvalLoss:
    """Measures a UNet on held-out batches.

    Args:
        loss: the loss of the UNet, as it is trained with.
        batches: those of ``held_out``.
        diffusion: the model's schedule and prediction type.
        timesteps: the grid.
    """

    def __init__(
        self, loss: DiffusionLoss, batches: Sequence[Batch], diffusion: DiffusionConfig, timesteps: np.ndarray
    ):
        # The training flag stays as it is: the UNet is the training step's too, and nothing in it depends on the flag.
        self._loss = _Loss(loss)
        self.timesteps = timesteps
        self._samples = np.array([np.count_nonzero(batch["weight"]) for batch in batches])
        self._batches = [dict(zip(fields_of(batch), tensors(batch))) for batch in batches]
        self._fields = [[_at(timestep, batch["weight"], diffusion) for timestep in timesteps] for batch in batches]

    def measure(self) -> Evaluation:
        """The loss of the UNet's present weights."""
        outputs = [
            [self._loss(*((batch | fields)[name] for name in batch)) for fields in of_timesteps]
            for batch, of_timesteps in zip(self._batches, self._fields)
        ]
        losses = np.array([[float(output.asnumpy()) for output in row] for row in outputs], np.float64)
        return Evaluation(self.timesteps, self._samples @ losses / self._samples.sum())


def _at(timestep: int, weights: np.ndarray, diffusion: DiffusionConfig) -> dict[str, Tensor]:
    """The fields of a batch that depend on the timestep; ``weights`` (B,) are 0 for what only fills the batch up."""
    uniform = (timestep + 0.5) / diffusion.num_train_timesteps  # in the middle of what the unbiased draw maps to it
    numbers = Noising(plain(diffusion)).numbers(np.full(len(weights), uniform), weights)
    return {name: Tensor(values) for name, values in numbers.items()}


def plain(diffusion: DiffusionConfig) -> DiffusionConfig:
    """The schedule and prediction type alone, without what shapes training: bias, weighting, perturbation."""
    return DiffusionConfig(**{name: getattr(diffusion, name) for name in SCHEDULE})


def grid(config: Config) -> np.ndarray:
    """The timesteps of the evaluation, (n,) int64, noisy to clean; an expert's are those of its own range.

    Raises:
        UsageError: none of them is in the expert's range.
    """
    diffusion, count = config.diffusion, config.validation.eval_timesteps
    found = inference_timesteps(count, "trailing", diffusion.num_train_timesteps).astype(np.int64)
    begin, end = trained_range(diffusion)
    found = found[(begin <= found) & (found < end)]
    if not len(found):
        raise UsageError(f"none of {count} --eval_timesteps is in the expert's range {begin}..{end - 1}: take more")
    return found


def held_out(config: Config, encoders: Encoders, tokenizers: Tokenizers) -> list[Batch]:
    """The held-out pictures of a configuration as batches, kept in memory: framed in the middle, never mirrored.

    Where training reads the cache they come from it as well, and are put into it first.

    Raises:
        SuiteError: the folder has none, or one that cannot be read.
    """
    fixed = copy.deepcopy(config)
    data = fixed.data
    data.path, data.datasets = config.validation.eval_data_path, ()
    data.shuffle = data.drop_last = data.with_prior_preservation = False
    data.crop, data.random_flip, data.caption_dropout = "center", False, 0.0
    fixed.launch.multi_graph = True  # encoded once, unless the text encoders change
    fixed.cache.variants, fixed.train.seed, fixed.optim.gradient_accumulation_steps = 1, SEED, 1
    fixed.diffusion = plain(config.diffusion)
    samples = datasets.scan(data)
    count = min(config.validation.num_eval_images, len(samples))
    samples = [samples[index * len(samples) // count] for index in range(count)]
    if fixed.cache.latent or fixed.cache.text_embedding:
        stored.build(fixed, encoders, tokenizers, samples=samples)
    with Batches.of(fixed, encoders=encoders, tokenizers=tokenizers, samples=samples) as batches:
        return [next(batches) for _ in range(batches.steps_per_epoch)]
