"""Files that appear whole or not at all: write beside, fsync, rename."""

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

BLOCK_BYTES = 64 * 2**20  # small enough to begin soon, large enough to be written in one go


class _StreamedFile(io.FileIO):
    """A new file whose blocks begin their way to the disk as they come, so that fsync finds little left to do."""

    def __init__(self, path: Path):
        super().__init__(path, "w")
        self._written = self._begun = 0

    def write(self, data: Any) -> int:
        count = super().write(data)
        self._written += count
        if self._written - self._begun >= BLOCK_BYTES and hasattr(os, "posix_fadvise"):
            # On Linux this begins to write what is not on the disk yet, and does not wait for it.
            os.posix_fadvise(self.fileno(), self._begun, self._written - self._begun, os.POSIX_FADV_DONTNEED)
            self._begun = self._written
        return count


def _opened(path: Path, mode: str) -> IO:
    return io.BufferedWriter(_StreamedFile(path)) if "b" in mode else open(path, mode, encoding="utf-8")


@contextmanager
def replacing(path: str | Path, mode: str = "wb") -> Iterator[IO]:
    """Open a temporary file beside ``path`` that takes its place if the block ends well, and vanishes if not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _opened(temporary, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with replacing(path, "w") as file:
        file.write(text)


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
