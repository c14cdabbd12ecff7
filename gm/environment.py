"""Process settings that MindSpore reads once, while it is being imported, and the allocator below it."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

ASCEND = Path("/dev/davinci_manager")  # there is a driver of Ascend devices


def prepare_environment() -> None:
    """Set what must be in the environment before ``import mindspore``; what the user has set stays."""
    # MindSpore's own warnings bury ours; GLOG_v=2 brings them back.
    os.environ.setdefault("GLOG_v", "3")
    # MindSpore's own choice, made before another package (Streamlit) loads protobuf in the way that it cannot use.
    os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
    try:
        release = tuple(int(part) for part in version("mindspore").split(".")[:2])
    except (PackageNotFoundError, ValueError):
        return
    # oneDNN 3.10, bundled from 2.9 on, runs 3x3 convolutions with reference code on AVX-512 hosts, 200 times too slow.
    if release >= (2, 9):
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")


def allocator() -> Path | None:
    """jemalloc as MindSpore brings it along, where a program should have it in place of the C library's allocator.

    A graph compiler makes and drops millions of small objects. On other machines than x86-64 Linux it may not know the
    size of a page, and for those with Ascend devices CANN has its own advice.
    """
    package = find_spec("mindspore")
    if (sys.platform, platform.machine()) != ("linux", "x86_64") or ASCEND.exists() or package is None:
        return None
    library = Path(package.origin).parent / "lib" / "libjemalloc.so.2"
    return library if library.is_file() else None


def take_allocator() -> None:
    """Start this program anew with ``allocator``, unless it has it or the user has set ``LD_PRELOAD``, to anything.

    What nothing has any more goes back to the system half a second later: after compiling that is much.
    """
    library = allocator()
    if library is None or "LD_PRELOAD" in os.environ:
        return
    os.environ["LD_PRELOAD"] = str(library)
    os.environ.setdefault("MALLOC_CONF", "narenas:1,dirty_decay_ms:500,muzzy_decay_ms:0")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
