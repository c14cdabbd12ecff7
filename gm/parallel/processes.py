"""Which process of how many this one is: read from the environment of whichever launcher started it."""

from collections.abc import Mapping
from dataclasses import dataclass

from gm.errors import UsageError
from gm.parallel import rank_table

PORT = 8118  # where ranks meet unless MS_SCHED_PORT names another; msrun's default
TRIES = 8  # a port that is taken gives way to the next
LOCALHOST = "127.0.0.1"

# How the two families of mpirun tell a process who it is: Open MPI, and those with Hydra (MPICH, Intel MPI).
_MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
# A process started by hand next to these would believe it were one of the job's.
VARIABLES = (
    *(name for family in _MPI for name in family),
    *("MS_ROLE", "MS_NODE_ID", "MS_WORKER_NUM", "MS_SCHED_HOST", "MS_SCHED_PORT"),
    *("RANK_TABLE_FILE", "RANK_ID", "RANK_SIZE", "DEVICE_ID"),
)


@dataclass(frozen=True)
class Process:
    """One process of a job.

    ``launcher``: "mpirun", "msrun", "rank table" or "alone". ``device_id``: the card in this server. ``host`` and
    ``port``: where rank 0 is met, at that port or one of the next; host "" if only MPI can tell. ``one_server``: all
    processes are known to be on it. ``job``: what tells this job from others at the same port. ``scheduler``: not a
    rank, but the extra process that msrun starts.
    """

    launcher: str = "alone"
    rank: int = 0
    size: int = 1
    device_id: int = 0
    host: str = LOCALHOST
    port: int = PORT
    one_server: bool = True
    job: str = ""
    scheduler: bool = False


def identify(environment: Mapping[str, str]) -> Process:
    """Read the launcher's variables: msrun's come first, then mpirun's, then a rank table's.

    Raises:
        UsageError: variables that are missing, no numbers, or contradict each other or the rank table.
        SuiteError: the rank table cannot be read.
    """
    if environment.get("MS_ROLE"):
        return _msrun(environment)
    for rank, size, local_rank, local_size in _MPI:
        if environment.get(size):
            return _mpirun(environment, rank, size, local_rank, local_size)
    if environment.get("RANK_TABLE_FILE") and environment.get("RANK_ID"):
        return _rank_table(environment)
    if _number(environment, "RANK_SIZE", 1) > 1:
        raise UsageError(
            f"RANK_SIZE is {environment['RANK_SIZE']}, but RANK_TABLE_FILE and RANK_ID are not both set: start the "
            "processes with mpirun, msrun or scripts/run_distribute_vanilla_ft_910b.sh, or unset RANK_SIZE"
        )
    return Process(device_id=_number(environment, "DEVICE_ID", 0))


def _msrun(environment: Mapping[str, str]) -> Process:
    size = _number(environment, "MS_WORKER_NUM")
    host, port = environment.get("MS_SCHED_HOST", LOCALHOST), _number(environment, "MS_SCHED_PORT", PORT)
    one_server = host in (LOCALHOST, "localhost")
    # At its own port msrun's scheduler listens.
    place = {"host": host, "port": port + 1, "one_server": one_server, "job": f"msrun {host}:{port}"}
    if environment["MS_ROLE"] == "MS_SCHED":
        return Process("msrun", 0, size, scheduler=True, **place)
    if "MS_NODE_ID" not in environment:
        raise UsageError("msrun was not told which server this is: start it with --node_rank=0, 1, ... on each server")
    rank = _number(environment, "MS_NODE_ID")
    return _checked(Process("msrun", rank, size, _number(environment, "DEVICE_ID", 0), **place))


def _mpirun(environment: Mapping[str, str], rank: str, size: str, local_rank: str, local_size: str) -> Process:
    count = _number(environment, size)
    one_server = _number(environment, local_size, count) == count
    return _checked(
        Process(
            "mpirun",
            _number(environment, rank),
            count,
            _number(environment, local_rank, 0),
            environment.get("MS_SCHED_HOST") or (LOCALHOST if one_server else ""),
            _number(environment, "MS_SCHED_PORT", PORT),
            one_server,
            f"mpirun {environment.get('PMIX_NAMESPACE', '')}",
        )
    )


def _rank_table(environment: Mapping[str, str]) -> Process:
    path = environment["RANK_TABLE_FILE"]
    table = rank_table.read(path)
    rank = _number(environment, "RANK_ID")
    if _number(environment, "RANK_SIZE", table.size) != table.size:
        raise UsageError(f"RANK_SIZE is {environment['RANK_SIZE']}, but {path} has {table.size} devices")
    _, device = table.place(rank)
    if _number(environment, "DEVICE_ID", device.device_id) != device.device_id:
        raise UsageError(
            f"DEVICE_ID is {environment['DEVICE_ID']}, but in {path} rank {rank} is device {device.device_id}"
        )
    one_server = len(table.servers) == 1
    host = LOCALHOST if one_server else table.place(0)[0].server_id
    port = _number(environment, "MS_SCHED_PORT", PORT)
    job = f"rank table {table.digest}"
    return Process("rank table", rank, table.size, device.device_id, host, port, one_server, job)


def _checked(process: Process) -> Process:
    if not 0 <= process.rank < process.size:
        raise UsageError(f"{process.launcher} started {process.size} processes, but calls this one rank {process.rank}")
    return process


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, "")
    if not text and default is not None:
        return default
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"the environment variable {name} is {text!r}, not a number from 0 on: start it anew")
    return int(text)
