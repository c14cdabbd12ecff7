"""What the processes of a job say to each other beside the device: small values, failures, and when to end."""

import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from gm.errors import EXIT_FAILURE, SuiteError
from gm.parallel import guard
from gm.parallel.processes import Process

STOPS_TOO = "this rank stops too"  # what the last line of a rank ends with that stops for another one's sake

log = logging.getLogger(__name__)


class Alone:
    """One process is its own company: the same calls as ``Peers``, without anybody to tell."""

    rank, size = 0, 1
    hosts: tuple[str, ...] = ("",)

    def gather(self, name: str, value: Any = None) -> list[Any]:
        return [value]

    def agree(self, facts: Mapping[str, str]) -> None: ...

    def may_take(self, step: int) -> bool:
        return True

    def begins(self, step: int) -> None: ...

    def has_done(self) -> None: ...

    def busy(self) -> AbstractContextManager:
        return nullcontext()

    def request_end(self, reason: str) -> None: ...

    def failed(self, reason: str) -> None: ...

    def leave(self) -> None: ...


class Peers:
    """The other processes, through this one's guard. Connected when made: all ranks are there.

    When any rank fails, dies or hangs, this process prints a line that names it and ends with code 1, whatever its main
    thread is doing.

    Raises:
        SuiteError: not all came in time, or they do not belong together.
    """

    def __init__(self, process: Process, start_timeout: float, silence: float):
        self.process, self.rank, self.size = process, process.rank, process.size
        self._news = threading.Condition()
        self._roster: list[dict] | None = None
        self._heard: dict[int, list] = {}
        self._turn = 0
        self._stop: str | None = None
        self._met = self._failing = self._leaving = self._closed = False
        self._holding, self._taken, self._end_at = False, 0, None
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        hello = {"hello": process.job, "rank": process.rank, "size": process.size}
        hello |= {"host": socket.gethostname(), "pid": os.getpid(), "cores": cores}
        self.guard, self._wire = guard.start(guard.Order(process, hello, start_timeout, silence))
        threading.Thread(target=self._listen, daemon=True, name="peers").start()
        with self._news:
            self._news.wait_for(lambda: self._roster or self._stop)
            self._met = self._stop is None
        if self._stop:  # with a roster it is another one's failure
            raise SuiteError(f"{self._stop}; {STOPS_TOO}" if self._roster else self._stop)
        self.hosts = tuple(known["host"] for known in self._roster)
        self.cores = tuple(tuple(known["cores"]) for known in self._roster)

    @property
    def neighbours(self) -> list[int]:
        """The ranks on this server, this one among them."""
        return [rank for rank, host in enumerate(self.hosts) if host == self.hosts[self.rank]]

    def gather(self, name: str, value: Any = None) -> list[Any]:
        """What every rank gave, by rank: all call it, at the same places in the same order; ``name`` says where.

        Values are what JSON can carry. Without a value it is a barrier.
        """
        turn, self._turn = self._turn, self._turn + 1
        self._wire.send({"say": value, "turn": turn, "name": name})
        with self._news:
            self._news.wait_for(lambda: turn in self._heard)
            return self._heard.pop(turn)

    def agree(self, facts: Mapping[str, str]) -> None:
        """Compare what must be the same everywhere, name by name.

        Raises:
            SuiteError: on every rank, if one of them differs from rank 0; names it and the facts.
        """
        first, *others = self.gather("agreement", dict(facts))
        lines = []
        for rank, theirs in enumerate(others, start=1):
            wrong = [name for name in {**first, **theirs} if first.get(name) != theirs.get(name)]
            told = [f"{name} ({_short(theirs.get(name))}, rank 0: {_short(first.get(name))})" for name in wrong[:3]]
            if wrong:
                more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
                lines.append(f"rank {rank} on {self.hosts[rank]} differs in {', '.join(told)}{more}")
        if lines:
            more = f"; and {len(lines) - 3} more ranks" if len(lines) > 3 else ""
            raise SuiteError(f"{'; '.join(lines[:3])}{more}: start all processes with the same command and files")

    def may_take(self, step: int) -> bool:
        """Whether to take this step: False from the step on before which all ranks end. May wait for the others."""
        with self._news:
            self._news.wait_for(lambda: not self._holding or self._end_at is not None)
            if self._end_at is not None and step > self._end_at:
                return False
            self._taken = step
        return True

    def begins(self, step: int) -> None:
        """Say that this rank hands a step to its device. Whoever is long in the next is taken for one that hangs."""
        self._wire.send({"step": step})

    def has_done(self) -> None:
        """Say that the device has done all the steps it was handed."""
        self._wire.send({"done": 1})

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Around what is no part of a step and takes as long as it takes."""
        self._wire.send({"busy": 1})
        try:
            yield
        finally:
            self._wire.send({"busy": -1})

    def request_end(self, reason: str) -> None:
        """Let all ranks end after the same step; safe in a signal handler."""
        # In a thread, as the handler may have interrupted this very thread while it was sending.
        threading.Thread(target=self._wire.send, args=({"end": reason},), daemon=True).start()

    def failed(self, reason: str) -> None:
        """Tell the others that this process gives up; they end. It has some seconds left for its own last words."""
        self._failing = True
        self._wire.send({"failed": f"failed: {reason}"})

    def leave(self) -> None:
        """Say goodbye, having done all. Rank 0 waits for the others, since they meet at its guard."""
        self._leaving = True
        self._wire.send({"bye": 1})
        with self._news:
            self._news.wait_for(lambda: self._closed or self.rank)
        self._wire.close()

    def _listen(self) -> None:
        while (messages := self._wire.receive()) is not None:
            for message in messages:
                with self._news:
                    self._hear(message)
                    self._news.notify_all()
        with self._news:
            if not (self._leaving or self._stop):
                self._hear({"stop": f"rank {self.rank} has lost the process that keeps watch for it"})
                self._news.notify_all()

    def _hear(self, message: dict) -> None:
        if "roster" in message:
            self._roster = message["roster"]
        elif "heard" in message:
            self._heard[message["turn"]] = message["heard"]
        elif "hold" in message:
            self._holding = True
            self._wire.send({"at": self._taken})
        elif "end_at" in message:
            self._end_at = message["end_at"]
        elif "closed" in message:
            self._closed = True
        elif "stop" in message:
            self._stop = message["stop"]
            if self._failing:  # MindSpore can take minutes to leave when a collective is left unfinished
                threading.Timer(guard.GRACE / 2, os._exit, (EXIT_FAILURE,)).start()
            elif self._met:
                _end(self._stop)


def _end(line: str) -> None:
    """Leave from a thread beside the main one, which may hang in a collective."""
    bars = getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())
    own_line = "\n" if len(bars) else ""  # a progress bar leaves its line unfinished
    print(f"{own_line}error: {line}; {STOPS_TOO}", file=sys.stderr, flush=True)
    logging.shutdown()
    os._exit(EXIT_FAILURE)


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def connect(process: Process, start_timeout: float, silence: float) -> Peers | Alone:
    """Meet the other processes of the job.

    Raises:
        SuiteError: see ``Peers``; or several servers, whose rank 0 nobody names.
    """
    if process.size == 1:
        return Alone()
    if not process.host:
        process = replace(process, host=_host_of_rank_0(process))
    return Peers(process, start_timeout, silence)


def _host_of_rank_0(process: Process) -> str:
    """Ask MPI, as mpirun says nothing of other servers."""
    from gm.parallel.rank_table import own_address

    try:
        from mpi4py import MPI
    except ImportError as error:
        raise SuiteError(
            "mpirun started processes on several servers, and nothing says where rank 0 is: "
            "pip install mpi4py, or give its address with mpirun -x MS_SCHED_HOST=10.0.0.1"
        ) from error
    if MPI.COMM_WORLD.Get_size() != process.size:
        raise SuiteError(
            "mpi4py belongs to another MPI than this mpirun: install it for this one, "
            "or give rank 0's address with mpirun -x MS_SCHED_HOST=10.0.0.1"
        )
    return MPI.COMM_WORLD.bcast(own_address() if process.rank == 0 else None, root=0)
