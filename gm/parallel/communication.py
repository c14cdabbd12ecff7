"""The devices of all ranks connected: HCCL on Ascend, MindSpore's own collectives on the CPU."""

import os
import socket
from datetime import timedelta

from mindspore.communication import management
from mindspore.mint.distributed import TCPStore

from gm.errors import SuiteError
from gm.parallel.peers import Peers
from gm.parallel.processes import Process

TRIES = 8  # a port can be taken between its choice and its use


def join(target: str, process: Process, peers: Peers, timeout: float) -> None:
    """Make this process's device a member of the world group; all ranks call it, once.

    On Ascend each launcher has its documented way, which ``init()`` takes by itself: msrun's scheduler, mpirun's MPI,
    or the rank table. On the CPU ``init()`` knows msrun's only, so there all ranks meet at a store that rank 0 keeps.

    Raises:
        SuiteError: they cannot be connected, or MindSpore counts them otherwise than the launcher.
    """
    os.environ.setdefault("RANK_SIZE", str(process.size))
    os.environ.setdefault("RANK_ID", str(process.rank))
    try:
        if target == "Ascend":
            management.init()
        else:
            _join_cpu(process, peers, timedelta(seconds=timeout))
        found = management.get_rank(), management.get_group_size()
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise SuiteError(f"{target}: rank {process.rank} cannot be connected with the others: {reason}") from error
    if found != (process.rank, process.size):
        raise SuiteError(
            f"{process.launcher} says rank {process.rank} of {process.size}, MindSpore rank {found[0]} of {found[1]}: "
            "start all processes with one launcher"
        )


def _join_cpu(process: Process, peers: Peers, timeout: timedelta) -> None:
    host, port, store = socket.gethostbyname(process.host), None, None
    if process.rank == 0:
        for _ in range(TRIES):
            port = _free_port()
            try:
                store = TCPStore(host, port, process.size, True, timeout, wait_for_workers=False)
                break
            except RuntimeError:
                port = None
    port = peers.gather("store", port)[0]
    if port is None:
        raise SuiteError(f"rank 0 finds no free port on {host}")
    if process.rank:
        store = TCPStore(host, port, process.size, False, timeout)
    _kept.append(store)
    # Neither is public: mint.distributed.init_process_group, which is, takes HCCL alone.
    if hasattr(management, "_init_with_store"):  # from 2.9 on
        management._init_with_store(timeout=timeout, world_size=process.size, rank=process.rank, store=store)
    else:
        milliseconds = int(timeout.total_seconds() * 1000)
        management._init_without_sched(timeout=milliseconds, world_size=process.size, rank=process.rank, store=store)


_kept: list[TCPStore] = []  # a store serves as long as it lives


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
