"""What a run logs: one JSON object a step, and TensorBoard."""

import json
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

from gm.files import write_text

FLUSH_SECONDS = 10.0  # how late TensorBoard may be

# TensorBoard's groups; what is in none of them is in "train".
GROUPS = {
    "perf": ("images_per_second", "tflops", "mfu", "memory_gb"),
    "time": ("seconds", "data_seconds", "compile_seconds", "save_seconds", "eval_seconds", "sample_seconds"),
    "eval": ("eval_loss",),
    "clip": tuple(f"clip_{kind}_{name}" for kind in ("score", "cosine") for name in ("mean", "min", "max", "std")),
}
TAGS = {name: f"{group}/{name}" for group, names in GROUPS.items() for name in names}


def tagged(values: Mapping[str, float]) -> dict[str, float]:
    """Values under TensorBoard's tags."""
    return {TAGS.get(name, f"train/{name}"): value for name, value in values.items()}


class Metrics:
    """Appends to ``metrics.jsonl`` and to TensorBoard's event files; use as a context manager.

    Going on from ``step`` drops what an interrupted run logged after it.
    """

    def __init__(self, path: Path, tensorboard: Path, step: int = 0):
        keep_until(path, step)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._board = Board(tensorboard, step)

    def add(self, step: int, **values: float | None) -> None:
        """One line for ``step``, ``values`` in the order given; None is for what is not a number."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        shown = {name: value for name, value in values.items() if value is not None}
        self._board.add(step, tagged(shown))

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Values by tag, in TensorBoard only."""
        self._board.add(step, values)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
            self._board.close()
        except OSError:
            if error is None:  # else it is the same full disk once more
                raise


class Unwritten(AbstractContextManager):
    """In place of ``Metrics`` in all processes but the first, which writes what all of them know."""

    def add(self, step: int, **values: float | None) -> None:
        """As ``Metrics.add``, to nowhere."""

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """As ``Metrics.show``, to nowhere."""

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""


class Board:
    """Writes TensorBoard's event file, in the caller's thread.

    tensorboardX' own ``SummaryWriter`` hands events to a thread; when the disk is full that thread dies, and the next
    events wait for it for ever.
    """

    def __init__(self, folder: Path, step: int = 0):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        folder.mkdir(parents=True, exist_ok=True)
        self._event, self._summary = Event, Summary
        self._writer = EventsWriter(str(folder / "events"), filename_suffix=f".{time.time_ns()}")
        if step:  # what an interrupted run logged after it is to be forgotten
            log = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(wall_time=time.time(), step=step + 1, session_log=log))
        self._flushed = 0.0

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars by tag."""
        scalars = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        summary = self._summary(value=scalars)
        self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=summary))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._writer.close()


def read(path: str | Path) -> list[dict]:
    """The records of a ``.jsonl`` file; a last line that was cut short is left out."""
    path = Path(path)
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def keep_until(path: Path, step: int) -> None:
    """Drop the records after ``step``, all of them for step 0; the file is there afterwards."""
    kept = [record for record in read(path) if record["step"] <= step] if step else []
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
