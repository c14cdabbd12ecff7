"""What follows from the contents of files, remembered so that an untouched file is not read again."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from gm.files import write_text

# A file written twice within the clock's grain could keep its times: hashes of files younger than this are not kept.
YOUNG = 2_000_000_000  # ns


def hash_stream(stream: BinaryIO) -> str:
    """BLAKE2b-128 of the bytes of a stream, as hex."""
    digest = hashlib.blake2b(digest_size=16)
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def hash_bytes(content: bytes) -> str:
    """What ``hash_stream`` gives for a stream of these."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


class FileNotes:
    """What was computed from files' contents, valid while size, times and inode of the file stay what they were.

    The change time counts too, which no program can set back; so a file replaced under its old date is noticed.
    """

    def __init__(self, path: Path):
        self._path = path
        self._changed = False
        try:
            notes = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            notes = None
        self._notes: dict[str, list] = notes if isinstance(notes, dict) else {}

    def remember(self, path: str | Path, what: str, compute: Callable[[str | Path], Any]) -> Any:
        """``compute(path)``, a JSON value, or what it gave when the file was the same; ``what`` names its kind.

        Notes are found again under the same ``path``: let it be absolute.
        """
        name = f"{what}:{path}"
        stamp = _stamp(path)
        noted = self._notes.get(name)
        if noted and noted[1:] == stamp:
            return noted[0]
        old = time.time_ns() - max(stamp[1:3]) > YOUNG  # so a change while it is read shows in the times, too
        result = compute(path)
        if old:
            self._notes[name] = [result, *stamp]
            self._changed = True
        return result

    def save(self) -> None:
        """Keep the notes; a folder that cannot be written to only costs the time to read the files again."""
        if not self._changed:
            return
        try:
            write_text(self._path, json.dumps(self._notes, ensure_ascii=False, separators=(",", ":")))
            self._changed = False
        except OSError:
            pass


def _stamp(path: str | Path) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
