"""The process beside each rank that keeps watch: a small Python program without MindSpore.

A thread could not do it: MindSpore holds Python's interpreter lock for minutes while it compiles a large graph, and a
thread is stopped with its process. The guard gives the signs of life, passes messages between its rank and the hub
(rank 0's guard runs it), says at once when its rank dies or is stopped, and ends its rank when any other is lost.
"""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from gm.parallel.hub import PAUSED, PULSE, Hub, listen, others_found
from gm.parallel.processes import TRIES, Process
from gm.parallel.wire import Message, Wire

GRACE = 5.0  # seconds a rank that is told to stop may take, then it is killed


@dataclass(frozen=True)
class Order:
    """What a guard is told: whose it is, whom to meet, how long to wait."""

    process: Process
    hello: Message
    start_timeout: float
    silence: float


def start(order: Order) -> tuple[subprocess.Popen, Wire]:
    """Start the guard of this process; returns it and the line to it."""
    ours, its = socket.socketpair()
    root = str(Path(__file__).resolve().parents[2])
    code = f"import sys; sys.path.insert(0, {root!r}); from gm.parallel import guard; guard.main()"
    text = json.dumps(asdict(order))
    # Its own session: a Ctrl-C at the terminal and a launcher's signals are for the rank, which may want to save.
    guard = subprocess.Popen(
        [sys.executable, "-S", "-c", code, str(its.fileno()), text],
        pass_fds=[its.fileno()],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    its.close()
    return guard, Wire(ours)


def main() -> None:
    """The guard: ``python ... <file descriptor> <order as JSON>``."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    told = json.loads(sys.argv[2])
    order = Order(Process(**told.pop("process")), **told)
    Guard(order, Wire(socket.socket(fileno=int(sys.argv[1])))).run()


class Guard:
    """Between its rank (``main``) and the hub."""

    def __init__(self, order: Order, main: Wire):
        self.order, self.process, self.main = order, order.process, main
        self.parent = order.hello["pid"]
        self.launcher = _parent_of(self.parent) if self.process.launcher == "mpirun" else None
        self.hub: Wire | None = None
        self.kill_at: float | None = None
        self.said_bye = self.orphaned = self.closed = False
        self.other_jobs: set[str] = set()  # that were found where ours was looked for

    def run(self) -> None:
        process, ports = self.process, range(self.process.port, self.process.port + TRIES)
        serving = None
        if process.rank == 0:
            listener = listen(ports, everywhere=not process.one_server)
            if listener is None:
                taken = f"ports {ports[0]} to {ports[-1]} of {process.host} are all taken"
                remedy = "name a free one, the same for all processes, with MS_SCHED_PORT (msrun: --master_port)"
                self.main.send({"stop": f"{taken}: {remedy}"})
                return
            serving = Hub(listener, process.job, process.size, self.order.start_timeout, self.order.silence)
            serving.start()
        self.hub = self._find(ports)
        if self.hub is None:
            where = f"at {process.host}, ports {ports[0]} to {ports[-1]}, within {self.order.start_timeout:g} s"
            found = others_found(self.other_jobs)
            self.main.send({"stop": f"rank 0 was not found {where}{found}: see what its own log says"})
        else:
            self._watch()
            self.hub.close()
        if serving:
            serving.join(4 * GRACE)

    def _find(self, ports: range) -> Wire | None:
        """Connected to the hub of this job, or None if its time is up or our rank has gone."""
        deadline = time.monotonic() + self.order.start_timeout
        while time.monotonic() < deadline and os.getppid() == self.parent:
            for port in ports:
                if time.monotonic() > deadline:  # what has a port and does not answer takes two seconds
                    break
                try:
                    connection = socket.create_connection((self.process.host, port), timeout=2)
                except OSError:
                    continue
                wire = Wire(connection)
                answer = wire.receive() if wire.send(self.order.hello) else None
                if answer and answer[0] == {"welcome": self.process.job}:
                    for message in answer[1:]:
                        self.main.send(message)
                    return wire
                self.other_jobs |= {message["welcome"] for message in answer or () if "welcome" in message}
                wire.close()
            time.sleep(0.05)
        return None

    def _watch(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self.main, selectors.EVENT_READ, self._from_main)
        selector.register(self.hub, selectors.EVENT_READ, self._from_hub)
        self.now = self.pulse = self.hub_heard = self.running = time.monotonic()
        while not self.closed:
            for key, _ in selector.select(PULSE / 4):
                messages = key.fileobj.receive()
                for message in messages or ():
                    key.data(message)
                if messages is None:
                    selector.unregister(key.fileobj)
                    key.data(None)
            self._look(time.monotonic())

    def _from_main(self, message: Message | None) -> None:
        if message is not None:
            self.said_bye |= "bye" in message
            self.hub.send(message)
            return
        if not self.said_bye:
            self.hub.send({"failed": "was lost: it ended without a word"})
        self.closed = True

    def _from_hub(self, message: Message | None) -> None:
        self.hub_heard = self.now
        if message is None:
            self._stop("rank 0 was lost: it ended without a word")
        elif "stop" in message:
            self._stop(message["stop"])
        elif "alive" not in message:
            self.main.send(message)

    def _look(self, now: float) -> None:
        silence = self.order.silence
        if now - self.now > PAUSED:
            self.hub_heard = self.running = now
        self.now = now
        if self.kill_at is not None:
            if now > self.kill_at:
                self._kill()
            return
        if now - self.pulse > PULSE:
            self.pulse = now
            self.hub.send({"alive": 1})
        if os.getppid() != self.parent and not self.closed:
            # Its children may still hold its end of the line; its own last words have been read at the second look.
            if self.orphaned:
                self._from_main(None)
            self.orphaned = True
            return
        if _state(self.parent) not in ("T", "t"):
            self.running = now
        if now - self.hub_heard > silence:
            self._stop(f"rank 0 was lost: not a sign of life for {silence:g} s")
        elif now - self.running > silence:
            self._fail(f"was lost: it has been stopped (SIGSTOP) for {silence:g} s")
        elif self.launcher is not None and _parent_of(self.parent) != self.launcher:
            self._fail(f"has lost its launcher: {self.process.launcher} is gone")

    def _fail(self, reason: str) -> None:
        self.hub.send({"failed": reason})
        self._stop(f"rank {self.process.rank} {reason}")

    def _stop(self, line: str) -> None:
        if self.kill_at is None:
            self.main.send({"stop": line})
            self.kill_at = self.now + GRACE

    def _kill(self) -> None:
        if os.getppid() == self.parent:
            os.kill(self.parent, signal.SIGKILL)
        self.closed = True


def _state(pid: int) -> str:
    """R, S, D, T, Z as /proc tells; "" where there is none."""
    return _stat(pid)[0]


def _parent_of(pid: int) -> int | None:
    parent = _stat(pid)[1]
    return int(parent) if parent else None


def _stat(pid: int) -> tuple[str, str]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[1]
