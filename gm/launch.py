"""From the ``launch`` section to a MindSpore that is ready: device, graph mode, memory limit, threads, determinism."""

import logging
import os
import time
from dataclasses import dataclass
from types import ModuleType

from gm.config.sections.machine import LaunchConfig
from gm.config.validation import memory_in_gigabytes
from gm.errors import SuiteError

SUPPORTED = ((2, 8), (2, 10))  # oldest and newest MindSpore this release is tested with
# Where mpirun, msrun and rank-table scripts say how many processes take part.
PROCESS_COUNT_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MS_WORKER_NUM", "RANK_SIZE")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """Where this process computes: ``target`` is "Ascend" or "CPU"; process ``rank`` of ``size``."""

    target: str
    rank: int = 0
    size: int = 1


def start(launch: LaunchConfig) -> Device:
    """Import MindSpore and set it up; call it once, before the first Cell.

    Raises:
        SuiteError: MindSpore or the device asked for is missing, numpy is too new, several processes were started.
    """
    begun = time.monotonic()
    _refuse_several_processes()
    _limit_cores(launch.threads)
    ms, numpy_version = _import_mindspore()
    target = _choose_device(ms, launch.device_target)
    ms.set_context(mode=ms.GRAPH_MODE if launch.ms_mode == 0 else ms.PYNATIVE_MODE)
    if launch.deterministic:
        ms.set_deterministic(True)
    memory = _limit_memory(ms, target, launch.max_device_memory)
    if launch.compile_cache:
        from gm import compilation

        compilation.keep_in(launch.compile_cache)
    mode = "graph mode" if launch.ms_mode == 0 else "PyNative mode"
    versions = f"MindSpore {ms.__version__}, numpy {numpy_version}"
    log.info("device %s, %s, %s%s: ready in %.1f s", target, mode, versions, memory, time.monotonic() - begun)
    return Device(target)


def _refuse_several_processes() -> None:
    for variable in PROCESS_COUNT_VARIABLES:
        count = os.environ.get(variable, "1")
        if count.isdigit() and int(count) > 1:
            raise SuiteError(
                f"{count} processes were started ({variable}={count}), but training on several devices is not in this "
                "release: start one process, without mpirun or msrun"
            )


def _limit_cores(count: int | None) -> None:
    """Keep this process, and every thread it starts from now on, on ``count`` of the cores it may use.

    MindSpore's own numbers of threads (``threads_num``, ``dispatch_threads_num``, ``OMP_NUM_THREADS``) leave its kernel
    threads on the CPU as they are in 2.8 and 2.10; the cores it finds while it is imported do not.
    """
    if count is None:
        return
    if not hasattr(os, "sched_setaffinity"):
        log.warning("--threads %d has no effect on this operating system", count)
        return
    cores = sorted(os.sched_getaffinity(0))
    if count > len(cores):
        log.warning("--threads %d: this process may use %d cores only", count, len(cores))
    os.sched_setaffinity(0, cores[:count])


def _import_mindspore() -> tuple[ModuleType, str]:
    import numpy

    if int(numpy.__version__.split(".")[0]) >= 2:
        raise SuiteError(f"numpy {numpy.__version__} does not work with MindSpore: pip install 'numpy<2'")
    try:
        import mindspore
    except ImportError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SuiteError(f"MindSpore cannot be imported ({reason}): pip install 'mindspore>=2.8,<2.11'") from error
    release = tuple(int(part) for part in mindspore.__version__.split(".")[:2])
    oldest, newest = SUPPORTED
    if not oldest <= release <= newest:
        log.warning(
            "MindSpore %s is outside %d.%d to %d.%d, with which this release is tested",
            mindspore.__version__, *oldest, *newest,
        )  # fmt: skip
    return mindspore, numpy.__version__


def _choose_device(ms: ModuleType, wanted: str) -> str:
    """Set the device and return its name; ``auto`` falls back to the CPU where Ascend cannot be loaded."""
    ascend = ms.device_context.ascend.is_available()
    if wanted == "Ascend" and not ascend:
        raise SuiteError(
            "--device_target Ascend: no Ascend device can be loaded here; install CANN and source its set_env.sh, "
            "or use --device_target CPU"
        )
    target = "Ascend" if ascend and wanted != "CPU" else "CPU"
    try:
        if target == "Ascend":
            ms.set_device("Ascend", int(os.environ.get("DEVICE_ID", "0")))
        else:
            ms.set_device("CPU")
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split("\n", 1)[0].split())
        raise SuiteError(f"device {target} cannot be set up: {reason}") from error
    return target


def _limit_memory(ms: ModuleType, target: str, limit: str | None) -> str:
    """Apply ``--max_device_memory`` and return what the log says about it."""
    if limit is None:
        return ""
    gigabytes = memory_in_gigabytes(limit)
    if target == "CPU":
        return f", --max_device_memory {limit} does not apply to the CPU"
    ms.runtime.set_memory(max_size=f"{gigabytes:g}GB")
    return f", at most {gigabytes:g} GB of device memory"
