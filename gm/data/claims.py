"""Who makes which file of a folder that several processes fill at once, be they ranks of one job or separate jobs."""

import errno
import logging
import os
import socket
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None

SUFFIX = ".claim"
PAUSE = 0.2  # seconds between looks at what others do
PATIENCE = 600  # seconds to wait for others before doing their work as well
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # from disks that know none

log = logging.getLogger(__name__)


class Claims:
    """Claims of this process to files of ``folder``: each a lock that ends with the process, however it ends.

    A claim only saves work: processes that make the same file all the same write the same bytes. So where a disk knows
    no locks, everybody gets every claim. Use as a context manager.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._held: dict[str, int | None] = {}

    def take(self, name: str) -> bool:
        """Whether the file ``name`` is this process's to make; False while another one is at it. Raises OSError."""
        try:
            file = self._lock(name)
        except BlockingIOError:
            return False
        if file is not None:
            if owner := os.read(file, 100).decode(errors="replace"):
                log.info("cache: %s ended before it had made %s; it is made here", owner, name)
                os.ftruncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        self._held[name] = file
        return True

    def wait(self, name: str) -> None:
        """Take the claim to ``name``, or do without when its owner gives no sign of an end for ``PATIENCE`` seconds."""
        begun = time.monotonic()
        while not self.take(name):
            if time.monotonic() - begun > PATIENCE:
                log.warning(
                    "cache: %s has been at %s for %d s: not waiting any longer", self.owner(name), name, PATIENCE
                )
                return
            time.sleep(PAUSE)

    def owner(self, name: str) -> str:
        """Who makes the file ``name``, for people."""
        try:
            return self._path(name).read_text(encoding="utf-8", errors="replace") or "another process"
        except OSError:
            return "another process"

    def drop(self, name: str) -> None:
        """Give a claim back: the file is made, or never will be."""
        file = self._held.pop(name, None)
        if file is not None:
            self._path(name).unlink(missing_ok=True)  # while it is locked: nobody else's is removed
            os.close(file)

    def clear(self) -> None:
        """Remove what processes that were killed have left of their claims."""
        for path in self._folder.glob(f".*{SUFFIX}"):
            name = path.name[1 : -len(SUFFIX)]
            if name in self._held:
                continue
            try:
                self._held[name] = self._lock(name)
            except BlockingIOError:
                continue
            self.drop(name)

    def __enter__(self) -> "Claims":
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._held):
            self.drop(name)

    def _path(self, name: str) -> Path:
        return self._folder / f".{name}{SUFFIX}"

    def _lock(self, name: str) -> int | None:
        """The open and locked file of a claim, None where there are no locks. Raises BlockingIOError if it is taken."""
        if fcntl is None:
            return None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            file = os.open(self._path(name), os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            error.filename = str(self._folder)  # nobody knows the claim's own name
            raise
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            if error.errno not in NO_LOCKS:
                raise
            self._path(name).unlink(missing_ok=True)
            return None
        return file
