"""What feeds the step: the host, batch after batch, or with ``--data_sink`` on Ascend a queue on the device itself.

On every device ``--data_sink`` means that the host waits for the device, and logs, once in ``--sink_size`` steps.
"""

import logging
import threading
from collections import deque
from collections.abc import Iterator
from typing import Protocol

import mindspore as ms
import numpy as np
from mindspore import Tensor
from mindspore.dataset import GeneratorDataset

from gm.config.sections.machine import LaunchConfig
from gm.data.batches import Batch, Cursor
from gm.training.step import arrays, tensors

log = logging.getLogger(__name__)


class Source(Protocol):
    """``gm.data.batches.Batches``, or what stands in for it: endless."""

    cursor: Cursor

    def __next__(self) -> Batch:
        """The next batch; ``cursor`` moves behind it."""


class HostFeed:
    """Batches as the tensors a step takes; ``cursor`` is where to go on after those that were handed out."""

    def __init__(self, batches: Source):
        self._batches = batches

    @property
    def cursor(self) -> Cursor:
        return self._batches.cursor

    def __next__(self) -> tuple[Tensor, ...]:
        return tensors(next(self._batches))


class DeviceFeed:
    """The same by way of ``mindspore.data_sink``, which moves batches into a queue on the device while steps run.

    ``count`` batches are asked for at most. MindSpore begins a dataset anew when it has reached its end, and reads the
    first row of one to see its shapes. So batches stay here until a step has them, and every reading begins with the
    first of these.
    """

    def __init__(self, batches: Source, count: int):
        self.cursor = batches.cursor
        self._batches, self._count = batches, count
        self._kept: deque[tuple[tuple[np.ndarray, ...], Cursor]] = deque()
        self._taken, self._error = 0, None
        self._reading, self._counting = threading.Lock(), threading.Lock()
        names = [f"field_{index}" for index in range(len(self._row(0)))]
        dataset = GeneratorDataset(self, names, shuffle=False, num_parallel_workers=1, python_multiprocessing=False)
        # One batch a call, so that a sink can end at any step and batches can differ in shape; the step has its graph.
        self._fetch = ms.data_sink(lambda *fields: fields, dataset, sink_size=1)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        place = self._taken
        while True:
            try:
                row = self._row(place)
            except Exception as error:
                self._error = error  # what MindSpore raises for it is a RuntimeError with a traceback as its text
                raise
            yield row
            place += 1

    def __next__(self) -> tuple[Tensor, ...]:
        try:
            fields = self._fetch()
        except RuntimeError:
            if self._error is not None:
                raise self._error from None
            raise
        with self._counting:
            _, self.cursor = self._kept.popleft()
            self._taken += 1
        return tuple(fields)

    def _row(self, place: int) -> tuple[np.ndarray, ...]:
        """The fields of the batch number ``place``, counted from the first."""
        with self._reading:
            while True:
                with self._counting:
                    if place < self._taken + len(self._kept):
                        return self._kept[place - self._taken][0]
                batch = next(self._batches)
                row = arrays(batch), self._batches.cursor
                with self._counting:
                    self._kept.append(row)


def feed(launch: LaunchConfig, batches: Source, count: int, target: str | None = None) -> HostFeed | DeviceFeed:
    """What feeds the step on ``target`` (by default this process's device); ``count`` batches are needed at most."""
    if not launch.data_sink:
        return HostFeed(batches)
    if (target or ms.get_context("device_target")) == "CPU":
        log.info(
            "data sink: a CPU has no queue of its own, the host hands over; it logs every %d steps", launch.sink_size
        )
        return HostFeed(batches)
    log.info("data sink: mindspore.data_sink feeds the device; the host logs every %d steps", launch.sink_size)
    return DeviceFeed(batches, count)
