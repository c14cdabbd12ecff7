"""What a run logs: one JSON object a step, and TensorBoard."""

import json
from pathlib import Path
from types import TracebackType

from gm.files import write_text


class Metrics:
    """Appends to ``metrics.jsonl`` and to TensorBoard's event files; use as a context manager.

    Going on from ``step`` drops what an interrupted run logged after it.
    """

    def __init__(self, path: Path, tensorboard: Path, step: int = 0):
        from tensorboardX import SummaryWriter

        kept = [record for record in read(path) if record["step"] <= step] if step else []
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._board = SummaryWriter(str(tensorboard), purge_step=step + 1 if step else None)

    def add(self, step: int, **values: float) -> None:
        """One line for ``step``; ``values`` in the order given."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"train/{name}", value, step)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._board.close()


def read(path: str | Path) -> list[dict]:
    """The records of a ``metrics.jsonl``; a last line that was cut short is left out."""
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
