"""In which order an epoch visits its samples: whole batches of one size, every sample once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gm.data.buckets import Size
from gm.data.randomness import generator
from gm.data.sample import Sample


@dataclass(frozen=True)
class GlobalBatch:
    """The samples of one step over all ranks and accumulated batches: ``positions`` (G,); the first ``real`` count.

    The rest only fills the batch up to its fixed size and weighs nothing. ``visits`` (G,) says how often each of the
    samples came before, in this epoch and those before it: what a sample draws follows from that.
    """

    positions: np.ndarray
    real: int
    visits: np.ndarray

    @property
    def weights(self) -> np.ndarray:
        """Loss weights (G,) float32 whose mean over the batch is the mean over the real samples."""
        size = len(self.positions)
        return np.where(np.arange(size) < self.real, size / self.real, 0).astype(np.float32)


def epoch_batches(
    sizes: Sequence[Size],
    batch: int,
    seed: int,
    epoch: int,
    shuffle: bool = True,
    drop_last: bool = False,
    datasets: Sequence[int] | None = None,
    repeats: Sequence[float] = (1.0,),
) -> list[GlobalBatch]:
    """The global batches of an epoch, in order; ``sizes[i]`` is the size sample i is trained at.

    Every sample comes once, or as often as ``repeats`` says of its data set, which ``datasets[i]`` is the number of.
    Within a size the data sets are dealt evenly over the batches. The last batch of a size is filled up by repeating
    samples of its own with weight 0, so that shapes stay static and the loss stays an honest mean; ``drop_last`` leaves
    that batch out instead. Every epoch has as many batches. Nothing but the arguments decides: not ranks, not workers.
    """
    of_size = _codes(sizes)
    of_dataset = np.zeros(len(sizes), np.int64) if datasets is None else np.asarray(datasets, np.int64)
    positions, visits = _visited(of_size, of_dataset, repeats, seed, epoch, shuffle)
    rng = generator(seed, epoch, "", "order")
    if shuffle:
        order = np.arange(len(positions))
        rng.shuffle(order)
        positions, visits = positions[order], visits[order]
    batches = []
    for size in range(of_size.max(initial=-1) + 1):
        mine = np.flatnonzero(of_size[positions] == size)
        mine = mine[_evenly(of_dataset[positions[mine]])]
        for start in range(0, len(mine), batch):
            chosen = mine[start : start + batch]
            if len(chosen) == batch or not drop_last:
                filled = np.resize(chosen, batch)
                batches.append(GlobalBatch(positions[filled], len(chosen), visits[filled]))
    if shuffle:
        batches = [batches[index] for index in rng.permutation(len(batches))]
    return batches


def datasets_of(samples: Sequence[Sample]) -> tuple[list[int], list[float]]:
    """The data set of each sample, and how often an epoch has the samples of each data set."""
    datasets = [sample.dataset for sample in samples]
    repeats = dict(zip(datasets, (sample.repeats for sample in samples)))
    return datasets, [repeats.get(number, 1.0) for number in range(max(datasets, default=0) + 1)]


def _codes(sizes: Sequence[Size]) -> np.ndarray:
    """A number for each size, in the order of the sizes: (N,) int64."""
    number = {size: index for index, size in enumerate(sorted(set(sizes)))}
    return np.fromiter((number[size] for size in sizes), np.int64, len(sizes))


def _visited(
    of_size: np.ndarray, of_dataset: np.ndarray, repeats: Sequence[float], seed: int, epoch: int, shuffle: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Which samples an epoch visits, and how often each was visited before: (M,) both, M the same in every epoch.

    The samples of a size and data set take turns in a fixed order; an epoch goes on where the last one ended. So
    with any repeats each comes as often as the others, give or take one.
    """
    if all(times == 1 for times in repeats):
        return np.arange(len(of_size)), np.full(len(of_size), epoch)
    chosen, visits = [], []
    for dataset, times in enumerate(repeats):
        turns = generator(seed, 0, "", f"turns of data set {dataset}")
        for size in range(of_size.max(initial=-1) + 1):
            members = np.flatnonzero((of_dataset == dataset) & (of_size == size))
            if not len(members):
                continue
            if shuffle:
                turns.shuffle(members)
            count = max(1, round(times * len(members)))
            places = np.arange(epoch * count, (epoch + 1) * count)
            chosen.append(members[places % len(members)])
            visits.append(places // len(members))
    positions, earlier = np.concatenate(chosen), np.concatenate(visits)
    order = np.lexsort((earlier, positions))
    return positions[order], earlier[order]


def _evenly(of_dataset: np.ndarray) -> np.ndarray:
    """An order of samples that spreads those of each data set evenly and keeps their own order: (M,)."""
    places = np.zeros(len(of_dataset))
    for dataset in np.unique(of_dataset):
        mine = np.flatnonzero(of_dataset == dataset)
        places[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    return np.lexsort((of_dataset, places))


def strata(batch: GlobalBatch, seed: int, epoch: int, step: int) -> np.ndarray:
    """Which of ``batch.real`` equal parts of its range each sample of a step draws its noise level from: (G,).

    The parts are dealt out anew in every step, so that a fixed order of samples does not tie a sample to a part; what
    only fills the batch up has the part of the sample it repeats.
    """
    dealt = generator(seed, epoch, "", f"strata of step {step}").permutation(batch.real)
    return np.resize(dealt, len(batch.positions))
