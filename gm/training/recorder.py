"""A step's numbers on their way to the log: they stay on the device until many are fetched at once."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from gm.training.memory import peak_bytes
from gm.training.metrics import Metrics
from gm.training.step import Numbers, Outputs
from gm.training.timing import Stopwatch


@dataclass
class Taken:
    """A step that was taken: what it returned, and what the host knows."""

    step: int
    outputs: Outputs
    samples: int
    flops: float
    known: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class NotFinite:
    """A step whose loss or gradient was not a number, so that it changed nothing."""

    step: int
    numbers: Numbers
    outputs: Outputs


class Recorder:
    """Writes one line of metrics for every step, those since the last ``fetch`` together.

    Fetching waits for the device; in between it is never waited for, so what one step took is not known: all steps that
    are fetched together are given the mean time of these. ``compile_seconds`` in what is known of a step count too.
    """

    def __init__(self, metrics: Metrics, watch: Stopwatch, peak_tflops: float | None = None):
        self.metrics = metrics
        self._watch, self._peak = watch, peak_tflops
        self._waiting: list[Taken] = []
        self._counted = 0.0  # seconds of steps that are logged

    def add(self, taken: Taken) -> None:
        self._waiting.append(taken)

    @property
    def waiting(self) -> bool:
        """Whether there are steps that are not logged yet."""
        return bool(self._waiting)

    def wait(self) -> None:
        """Let the device finish the steps taken so far, so that what follows is timed by itself."""
        with self._watch("step"):
            self._waiting[-1].outputs.fetch()

    def fetch(self) -> tuple[dict[str, float | None], NotFinite | None]:
        """Log all steps that wait; return the newest one's line, and the first one that was not finite."""
        waiting, self._waiting = self._waiting, []
        with self._watch("step"):
            fetched = [taken.outputs.fetch() for taken in waiting]
        speed = self._speed(waiting)
        first_bad, line = None, {}
        for taken, numbers in zip(waiting, fetched):
            line = numbers.record()
            line |= taken.known | speed
            self.metrics.add(taken.step, **line)
            if first_bad is None and not numbers.sound:
                first_bad = NotFinite(taken.step, numbers, taken.outputs)
        return line, first_bad

    def _speed(self, steps: Sequence[Taken]) -> dict[str, float]:
        counted = self._watch.seconds["step"] + self._watch.seconds["data"]
        seconds, self._counted = counted - self._counted, counted
        seconds += sum(taken.known.get("compile_seconds", 0.0) for taken in steps)
        tflops = sum(taken.flops for taken in steps) / seconds / 1e12
        found = {
            "images_per_second": round(sum(taken.samples for taken in steps) / seconds, 3),
            "seconds": round(seconds / len(steps), 4),
            "tflops": float(f"{tflops:.4g}"),
        }
        if self._peak is not None:
            found["mfu"] = float(f"{tflops / self._peak:.4g}")
        return found | {"memory_gb": round(peak_bytes() / 1e9, 3)}
