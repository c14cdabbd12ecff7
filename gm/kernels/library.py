"""The kernels as a shared library: compiled where it is missing, and kept under a hash of all that went into it."""

import ctypes
import errno
import fcntl
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from gm.files import make_folder, replacing

log = logging.getLogger(__name__)

SOURCE = Path(__file__).parent / "source"
FLAGS = ["-std=c++17", "-O3", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"]
FLAGS += ["-shared", "-fPIC", "-pthread"]
# Vector instructions of this machine: clang knows them by another flag on Arm, and would halve vectors of 512 bits.
NATIVE = ["-mcpu=native"]
if platform.machine() in ("x86_64", "AMD64"):
    NATIVE = ["-march=native", "-mprefer-vector-width=512"]


@cache
def library() -> Path | None:
    """Where the compiled kernels lie; None, said once in the log, where there is no compiler or it fails."""
    compiler = find_compiler()
    if compiler is None:
        log.warning(
            "no C++ compiler found: MindSpore's own kernels do all of the work, which takes two to three times as "
            "long; install g++ or clang++, or: pip install ziglang"
        )
        return None
    try:
        place = compiled(compiler)
        ctypes.CDLL(str(place))  # here an error is a line in the log; within a graph it would end the program
    except (OSError, subprocess.SubprocessError) as error:
        log.warning(
            "the C++ kernels cannot be compiled or loaded, so MindSpore's own do all of the work, which takes two to "
            "three times as long: %s: %s (CXX names another compiler)",
            " ".join(compiler),
            _reason(error),
        )
        return None
    return place


def find_compiler() -> list[str] | None:
    """The command of a C++ compiler: that of ``CXX``, the system's, or the one of the package ziglang."""
    if named := os.environ.get("CXX", "").split():
        return named
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    return [sys.executable, "-m", "ziglang", "c++"] if find_spec("ziglang") else None


def folder() -> Path:
    """Where compiled kernels are kept: the user's cache. Raises RuntimeError for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "sdxl-mindspore" / "kernels"


def compiled(compiler: list[str]) -> Path:
    """The library of this source by this compiler for this machine. Raises OSError or CalledProcessError."""
    sources = sorted(SOURCE.glob("*.cpp"))
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(SOURCE.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    command = [*compiler, *FLAGS, *NATIVE]
    digest.update(repr(command).encode())
    # All that the compiler defines for this machine, its own version and the instructions it may use among it.
    defined = [*compiler, *NATIVE, "-x", "c++", "-E", "-dM", os.devnull]
    kept = _folder()
    digest.update(_run(defined, kept).encode())
    place = kept / f"kernels-{digest.hexdigest()}.so"
    if place.exists():
        return place
    with open(place.with_suffix(".lock"), "w") as lock:
        with suppress(OSError):  # a file system without locks: each compiles, and the last library stays
            fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes one compiles
        if not place.exists():
            log.info("compiling the CPU kernels with %s, once on this machine", " ".join(compiler))
            started = time.monotonic()
            with tempfile.TemporaryDirectory() as scratch:
                made = Path(scratch) / "kernels.so"
                _run([*command, *map(str, sources), "-o", str(made)], kept)
                with replacing(place) as file:
                    file.write(made.read_bytes())
            log.info("compiled the CPU kernels in %.1f s: %s", time.monotonic() - started, place)
    return place


def _folder() -> Path:
    """``folder``; without a home that can be written to, one for temporary files. Raises OSError without either."""
    with suppress(OSError, RuntimeError):
        return make_folder(folder())
    place = Path(tempfile.gettempdir()) / f"sdxl-mindspore-{os.getuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    # What lies here is run, and among temporary files others could have made the folder, or a link of its name.
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(errno.EPERM, "others can write there: remove it or set XDG_CACHE_HOME", str(place))
    return place


def _run(command: list[str], kept: Path) -> str:
    """What a compiler prints. Raises OSError or CalledProcessError."""
    # zig keeps a C++ library that it compiled for itself: without this in the home, which need not be there.
    environment = {"ZIG_GLOBAL_CACHE_DIR": str(kept / "zig")} | os.environ
    return subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=True,
    ).stdout


def _reason(error: Exception) -> str:
    """The first line of what went wrong; lines before it that end in a colon or a comma only tell where."""
    lines = [line.strip() for line in (getattr(error, "stderr", None) or "").splitlines()]
    return next((line for line in lines if line and line[-1] not in ":,"), str(error))
