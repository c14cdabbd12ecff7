"""Start the ranks of this server from a rank table, and look after them: what the scripts for rank tables run.

    python -m gm.parallel.spawn LOGS COMMAND... -- RANK_TABLE RANK_START RANK_END RANK_SIZE DATASET [--flags...]

starts ``python COMMAND... --data_path DATASET --flags...`` as ranks RANK_START to RANK_END - 1, the output of each in
``LOGS/log_<rank>.txt`` and that of the first on the terminal too. It ends when all have ended; when one fails the
others are stopped and its code is the exit code. Ctrl-C or SIGTERM lets them save and end; once more ends them at once.
"""

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from gm.errors import SuiteError, UsageError, run_door
from gm.parallel import rank_table
from gm.parallel.peers import STOPS_TOO
from gm.parallel.rank_table import RankTable

GRACE = 15.0  # seconds in which the ranks notice by themselves that one has failed
NAMES = ("RANK_TABLE_FILE", "RANK_START", "RANK_END", "RANK_SIZE", "DATASET_PATH")


@dataclass(frozen=True)
class Job:
    """What to start here: ranks ``start`` to ``end - 1`` of the table."""

    table: RankTable
    table_path: Path
    start: int
    end: int
    data_path: str
    flags: list[str] = field(default_factory=list)


def read_arguments(arguments: Sequence[str]) -> Job:
    """The five places of the seed's scripts, then flags for train.py.

    Raises:
        UsageError: too few, no numbers, numbers that do not fit each other or the table, flags that are none.
        SuiteError: no rank table, no data.
    """
    flags = next((place for place, text in enumerate(arguments) if text.startswith("--")), len(arguments))
    places = arguments[:flags]
    if len(places) < len(NAMES):
        found = f"{len(places)} of 5 were given" if places else "none were given"
        raise UsageError(f"the arguments are {' '.join(NAMES)}, then flags of train.py: {found}")
    if len(places) > len(NAMES):
        raise UsageError(f"{places[5]!r} is one too many: after {' '.join(NAMES)} come flags such as --cache_path DIR")
    start, end, size = (_number(name, text) for name, text in zip(NAMES[1:4], places[1:4]))
    table = rank_table.read(places[0])
    if size != table.size:
        raise UsageError(f"RANK_SIZE is {size}, but {places[0]} has {table.size} devices")
    if not start < end <= size:
        raise UsageError(f"RANK_START {start} and RANK_END {end}: they must be 0 <= start < end <= {size}")
    servers = {table.place(rank)[0].server_id for rank in range(start, end)}
    if len(servers) > 1:
        raise UsageError(
            f"ranks {start} to {end - 1} are on servers {' and '.join(sorted(servers))}: start on each server its own"
        )
    if not (Path(places[4]).exists() or "{" in places[4]):  # tar shards: shards/{000..012}.tar
        raise SuiteError(f"no folder of pictures at {places[4]}: the fifth argument is DATASET_PATH")
    return Job(table, Path(places[0]).resolve(), start, end, places[4], list(arguments[flags:]))


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"{name} is {text!r}, not a number from 0 on: the arguments are {' '.join(NAMES)}")
    return int(text)


def environment(job: Job, rank: int, port: int | None) -> dict[str, str]:
    """What the process of a rank finds in its environment beside what is there."""
    server, device = job.table.place(rank)
    variables = {
        "RANK_TABLE_FILE": str(job.table_path),
        "RANK_SIZE": str(job.table.size),
        "RANK_ID": str(rank),
        "DEVICE_ID": str(device.device_id),
        "DEVICE_NUM": str(len(server.devices)),
        # Until the slowest rank has read its weights and compiled; HCCL's own two minutes are short for that.
        "HCCL_CONNECT_TIMEOUT": os.environ.get("HCCL_CONNECT_TIMEOUT", "7200"),
    }
    if port is not None:
        variables["MS_SCHED_PORT"] = str(port)
    return variables


class Ranks:
    """The processes of a job on this server."""

    def __init__(self, job: Job, command: Sequence[str], logs: Path):
        self.job, self.logs = job, logs
        self.signals = 0
        self.processes: dict[int, subprocess.Popen] = {}
        whole = [sys.executable, *command, "--data_path", job.data_path, *job.flags]
        port = None
        if len(job.table.servers) == 1 and "MS_SCHED_PORT" not in os.environ:
            port = _free_port()  # jobs side by side need not share one
        for rank in range(job.start, job.end):
            with self.log(rank).open("wb") as log:
                self.processes[rank] = subprocess.Popen(
                    whole,
                    env=os.environ | environment(job, rank, port),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C reaches them once, from here
                    preexec_fn=_end_with_parent,
                )

    def log(self, rank: int) -> Path:
        return self.logs / f"log_{rank}.txt"

    def watch(self, show: Callable[[bytes], object]) -> bool:
        """Wait until all have ended well, or one has not. ``show`` gets what the first one logs."""
        with self.log(self.job.start).open("rb") as first:
            while True:
                codes = [process.poll() for process in self.processes.values()]
                show(first.read())
                if any(codes):
                    return False
                if all(code == 0 for code in codes):
                    return True
                time.sleep(0.2)

    def wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.1)

    def alive(self) -> list[int]:
        return [rank for rank, process in self.processes.items() if process.poll() is None]

    def send(self, number: int) -> None:
        for rank in self.alive():
            with suppress(ProcessLookupError):
                os.killpg(self.processes[rank].pid, number)

    def ask_to_end(self, number: int, frame: object) -> None:
        """The handler of SIGINT and SIGTERM."""
        self.signals += 1
        if self.signals == 1:
            print(f"{signal.Signals(number).name}: the ranks save and end; once more ends them at once", flush=True)
            self.send(signal.SIGTERM)
        else:
            self.send(signal.SIGKILL)

    def close(self) -> None:
        """Nothing stays behind."""
        self.send(signal.SIGKILL)
        for process in self.processes.values():
            process.wait()


def _end_with_parent() -> None:
    """Linux: a rank is asked to end when whoever looks after it is killed."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _error(log: Path) -> str:
    """The line in which a rank says why it has failed: its own, else Python's, else what its log ends with."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-200:] if line.strip()]
    told = [line for line in lines if line.startswith("error: ")]
    raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    return (told[-1:] or raised[-1:] or lines[-1:] or [""])[0].removeprefix("error: ")


def _culprit(ranks: Ranks) -> int:
    """Which rank failed first: one that was killed, or that does not say that another one failed."""
    failed = {rank: process.poll() for rank, process in ranks.processes.items() if process.poll()}
    own = [rank for rank in failed if not _error(ranks.log(rank)).endswith(STOPS_TOO)]
    return next(iter([*(rank for rank in own if failed[rank] < 0), *own, *failed]))


def main(arguments: list[str]) -> int:
    place = arguments.index("--")
    logs, *command = arguments[:place]
    job = read_arguments(arguments[place + 1 :])
    logs = Path(logs)
    logs.mkdir(parents=True, exist_ok=True)
    ranks = Ranks(job, command, logs)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ranks.ask_to_end)
    try:
        print(f"ranks {job.start} to {job.end - 1} of {job.table.size}: logs in {logs}/log_*.txt", flush=True)
        if ranks.watch(lambda text: (sys.stdout.buffer.write(text), sys.stdout.flush())):
            return 0
        ranks.wait(GRACE)
        rank = _culprit(ranks)
    finally:
        ranks.close()
    code = ranks.processes[rank].returncode
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    print(f"error: rank {rank} {how}: {_error(ranks.log(rank))} ({ranks.log(rank)})", file=sys.stderr)
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    run_door(main)
