"""What the readers give: captioned pictures, where their bytes are, and what cannot be used."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gm.data.buckets import Size
from gm.data.notes import FileNotes, hash_stream


@dataclass(frozen=True)
class PictureFile:
    """The bytes of a picture: the file ``path``, or ``length`` bytes of it from ``start`` on (a member of a tar)."""

    path: str | Path  # a data set has many: text takes less room, and is quicker to make
    start: int = 0
    length: int | None = None

    def open(self, mode: str = "rb") -> BinaryIO:
        """A stream of its own, so that any number of threads and processes may read at once."""
        file = open(self.path, mode)  # noqa: SIM115  (the caller closes it)
        return file if self.length is None else io.BufferedReader(_Part(file, self.start, self.length))

    def read(self) -> bytes:
        """All of the bytes."""
        with self.open() as stream:
            return stream.read()

    def hash(self, notes: FileNotes) -> str:
        """BLAKE2b-128 of the bytes, as hex; looked up in ``notes`` while the file is the same."""

        def compute(_: Path) -> str:
            with self.open() as stream:
                return hash_stream(stream)

        part = "" if self.length is None else f" {self.start}+{self.length}"
        return notes.remember(self.path, f"bytes{part}", compute)


@dataclass(frozen=True)
class Sample:
    """One captioned picture.

    ``id`` is its path below the data folder with "/", behind the name of its data set where there are several: what
    its randomness follows from. ``size`` is the upright (height, width). An epoch has it ``repeats`` times, and its
    loss counts ``loss_weight`` times.
    """

    id: str
    picture: PictureFile
    captions: tuple[str, ...]
    size: Size
    dataset: int = 0
    loss_weight: float = 1.0
    repeats: float = 1.0


@dataclass(frozen=True)
class Problem:
    """A sample that cannot be used, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Found:
    """A picture as its source has it: ``size`` is upright (height, width), or why it cannot be read."""

    name: str
    picture: PictureFile
    captions: Sequence[str]
    size: Size | str


class _Part(io.RawIOBase):
    """A stretch of a file as a file of its own; closes what it is part of."""

    def __init__(self, file: BinaryIO, start: int, length: int):
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence])
        return self._at

    def readinto(self, buffer: bytearray) -> int:
        self._file.seek(self._start + self._at)
        with memoryview(buffer) as view:
            count = self._file.readinto(view[: max(0, min(len(view), self._length - self._at))])
        self._at += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
