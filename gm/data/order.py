"""In which order an epoch visits its samples: whole batches of one size, every sample once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gm.data.buckets import Size
from gm.data.randomness import generator


@dataclass(frozen=True)
class GlobalBatch:
    """The samples of one step over all ranks and accumulated batches: positions (G,); the first ``real`` count.

    The rest only fills the batch up to its fixed size and weighs nothing.
    """

    positions: np.ndarray
    real: int

    @property
    def weights(self) -> np.ndarray:
        """Loss weights (G,) float32 whose mean over the batch is the mean over the real samples."""
        size = len(self.positions)
        return np.where(np.arange(size) < self.real, size / self.real, 0).astype(np.float32)


def epoch_batches(
    sizes: Sequence[Size], batch: int, seed: int, epoch: int, shuffle: bool = True, drop_last: bool = False
) -> list[GlobalBatch]:
    """The global batches of an epoch, in order; ``sizes[i]`` is the size sample i is trained at.

    Every sample comes once. The last batch of a size is filled up by repeating samples of its own with weight 0, so
    that shapes stay static and the loss stays an honest mean; ``drop_last`` leaves that batch out instead. Nothing but
    the arguments decides: not ranks, not workers.
    """
    order = np.arange(len(sizes))
    rng = generator(seed, epoch, "", "order")
    if shuffle:
        rng.shuffle(order)
    of_size: dict[Size, list[int]] = {size: [] for size in sorted(set(sizes))}
    for position in order:
        of_size[sizes[position]].append(int(position))
    batches = []
    for positions in of_size.values():
        for start in range(0, len(positions), batch):
            chosen = np.array(positions[start : start + batch])
            if len(chosen) == batch or not drop_last:
                batches.append(GlobalBatch(np.resize(chosen, batch), len(chosen)))
    if shuffle:
        batches = [batches[index] for index in rng.permutation(len(batches))]
    return batches


def strata(batch: GlobalBatch, seed: int, epoch: int, step: int) -> np.ndarray:
    """Which of ``batch.real`` equal parts of its range each sample of a step draws its noise level from: (G,).

    The parts are dealt out anew in every step, so that a fixed order of samples does not tie a sample to a part; what
    only fills the batch up has the part of the sample it repeats.
    """
    dealt = generator(seed, epoch, "", f"strata of step {step}").permutation(batch.real)
    return np.resize(dealt, len(batch.positions))
