"""From the ``launch`` section to a MindSpore that is ready: device, graph mode, memory limit, threads, determinism."""

import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType

from gm.config.sections.machine import LaunchConfig
from gm.config.validation import memory_in_gigabytes
from gm.errors import SuiteError, explain
from gm.parallel import processes
from gm.parallel.peers import Alone, Peers, connect
from gm.parallel.processes import Process

SUPPORTED = ((2, 8), (2, 10))  # oldest and newest MindSpore this release is tested with

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """Where this process computes: ``target`` is "Ascend" or "CPU"; process ``rank`` of ``size``.

    ``peers`` carries small values between the processes without the device. Work that several processes share stands in
    a ``with`` block: leaving it says goodbye to the others, or by an exception tells them that this process gives up.
    """

    target: str
    rank: int = 0
    size: int = 1
    peers: Peers | Alone = field(default_factory=Alone, compare=False)

    def __enter__(self) -> "Device":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if error is None or (isinstance(error, SystemExit) and not error.code):
            self.peers.leave()
        else:
            known = isinstance(error, (SuiteError, OSError, MemoryError, KeyboardInterrupt))
            reason = explain(error)[0] if known else f"{type(error).__name__}: {error}"
            self.peers.failed(reason.strip().partition("\n")[0])


def start(launch: LaunchConfig, together: bool = False) -> Device:
    """Import MindSpore and set it up; call it once, before the first Cell.

    With ``together`` several processes, started by mpirun, msrun or with a rank table, become the ranks of one job:
    ``device.rank`` of ``device.size``, whose devices communicate. ``launch.is_parallel`` says that they are expected.

    Raises:
        SuiteError: MindSpore or the device asked for is missing, numpy is too new; several processes were started for
            something that takes one, or they do not find each other.
    """
    begun = time.monotonic()
    process = processes.identify(os.environ)
    _check_number(process, launch.is_parallel, together)
    if process.scheduler:
        _serve(launch)
    peers = connect(
        process, launch.start_timeout if not process.one_server else launch.rank_timeout, launch.rank_timeout
    )
    if process.size > 1:
        _name_rank_in_log(process)
        log.info("rank %d of %d by %s, on %s", process.rank, process.size, process.launcher, peers.hosts[process.rank])
    _limit_cores(launch, peers)
    ms, numpy_version = _import_mindspore()
    target = _choose_device(ms, launch.device_target, process.device_id)
    ms.set_context(mode=ms.GRAPH_MODE if launch.ms_mode == 0 else ms.PYNATIVE_MODE)
    if launch.deterministic:
        ms.set_deterministic(True)
    memory = _limit_memory(ms, target, launch.max_device_memory)
    versions = f"MindSpore {ms.__version__}, numpy {numpy_version}"
    if process.size > 1:
        peers.agree({"device": target, "versions": versions, "mode": str(launch.ms_mode)})
        from gm.parallel import communication

        communication.join(target, process, peers, launch.start_timeout)
    from gm import compilation

    compilation.hold_around(peers.busy)
    if launch.compile_cache:
        compilation.keep_in(launch.compile_cache)
    mode = "graph mode" if launch.ms_mode == 0 else "PyNative mode"
    log.info("device %s, %s, %s%s: ready in %.1f s", target, mode, versions, memory, time.monotonic() - begun)
    return Device(target, process.rank, process.size, peers)


def _check_number(process: Process, is_parallel: bool, together: bool) -> None:
    if process.size > 1 and not together:
        raise SuiteError(
            f"{process.launcher} started {process.size} processes of something that one does alone: "
            f"start it without {process.launcher}"
        )
    if process.size > 1 and not is_parallel and process.rank == 0:
        log.info("%d processes work together, as with --is_parallel True", process.size)
    if process.size == 1 and is_parallel:
        log.warning("--is_parallel True, but one process was started: it works alone (docs/distributed.md)")


def _serve(launch: LaunchConfig) -> None:
    """Be msrun's scheduler, which on the CPU has nothing to do, and leave."""
    if _takes_ascend(launch):
        ms, _ = _import_mindspore()
        if _choose_device(ms, launch.device_target, 0) == "Ascend":
            from mindspore.communication import init

            init()
    sys.exit(0)


def _takes_ascend(launch: LaunchConfig) -> bool:
    """Whether an Ascend device may be used: told before MindSpore is imported, from what set_env.sh of CANN sets."""
    named = any(os.environ.get(name) for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME", "ASCEND_OPP_PATH"))
    return launch.device_target == "Ascend" or (launch.device_target == "auto" and named)


def _name_rank_in_log(process: Process) -> None:
    """Where all ranks write to one terminal, let rank 0 tell the story and the others what worries them."""
    if process.launcher == "mpirun" and process.rank:
        root = logging.getLogger()
        root.setLevel(logging.WARNING)  # not of the handlers: a progress bar puts its own in their place
        for handler in root.handlers:
            handler.setFormatter(logging.Formatter(f"[rank {process.rank}] %(message)s"))


def _limit_cores(launch: LaunchConfig, peers: Peers | Alone) -> None:
    """Keep this process, and every thread it starts from now on, on its share of the cores.

    MindSpore's own numbers of threads (``threads_num``, ``dispatch_threads_num``, ``OMP_NUM_THREADS``) leave its kernel
    threads on the CPU as they are in 2.8 and 2.10; the cores it finds while it is imported do not. These threads spin
    while they wait, so that two processes on the same cores stall each other.
    """
    if not hasattr(os, "sched_setaffinity"):
        if launch.threads:
            log.warning("--threads %d has no effect on this operating system", launch.threads)
        return
    cores = sorted(os.sched_getaffinity(0))
    if launch.threads and launch.threads > len(cores):
        log.warning("--threads %d: this process may use %d cores only", launch.threads, len(cores))
    place, count = 0, 1
    if peers.size > 1 and (launch.threads or not _takes_ascend(launch)):
        neighbours = peers.neighbours
        if len({peers.cores[rank] for rank in neighbours}) == 1:  # else mpirun has given each its own
            place, count = neighbours.index(peers.rank), len(neighbours)
    chosen = share(cores, place, count, launch.threads)
    if chosen != cores:
        os.sched_setaffinity(0, chosen)
        if count > 1:
            log.info("this rank computes on core%s %s", "s" * (len(chosen) > 1), ", ".join(map(str, chosen)))


def share(cores: Sequence[int], place: int, count: int, threads: int | None = None) -> list[int]:
    """The cores of the process at ``place`` of ``count`` on a machine: as equal parts as can be, one each at least.

    >>> share(range(8), 1, 2), share(range(2), 3, 4), share(range(8), 1, 2, threads=3)
    ([4, 5, 6, 7], [1], [3, 4, 5])
    """
    each = min(threads or max(len(cores) // count, 1), len(cores))
    return sorted(cores[(place * each + number) % len(cores)] for number in range(each))


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


def _choose_device(ms: ModuleType, wanted: str, device_id: int) -> str:
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
            ms.set_device("Ascend", device_id)
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
