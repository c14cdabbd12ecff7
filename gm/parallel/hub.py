"""The meeting point of a job's ranks: all guards are connected to it, and learn from it when one of them is lost.

guard -> hub    {"hello": job, "rank", "size", "host", "pid", "cores"}   {"alive": 1}   {"say": value, "turn", "name"}
                {"step": number}   {"done": 1}   {"busy": 1 or -1}   {"failed": reason}   {"end": reason}   {"at": step}
                {"bye": 1}
hub -> guard    {"welcome": job}   {"roster": [hello, ...]}   {"alive": 1}   {"heard": [value, ...], "turn"}
                {"stop": line}   {"hold": reason}   {"end_at": step}   {"closed": 1}
"""

import selectors
import socket
import threading
import time
from dataclasses import dataclass, field

from gm.parallel.pace import BEHIND, Pace
from gm.parallel.wire import Message, Wire

PULSE = 1.0  # seconds between signs of life
PAUSED = 5.0  # a gap this long between two looks means that this process itself was stopped
FAREWELL = 10  # times the silence: how long a rank may work on when another one has said goodbye


@dataclass
class Turn:
    """A gathering that has begun: the place in the program that calls itself so, and what has come by rank."""

    name: str
    begun: float
    values: dict[int, object] = field(default_factory=dict)


class Hub(threading.Thread):
    """Serves one job until all its ranks have said goodbye, or one is lost.

    Args:
        start_timeout: seconds in which all ranks must come.
        silence: seconds without a sign of life after which a rank is lost.
    """

    def __init__(self, listener: socket.socket, job: str, size: int, start_timeout: float, silence: float):
        super().__init__(daemon=True, name="hub")
        self.listener, self.job, self.size = listener, job, size
        self.start_timeout, self.silence = start_timeout, silence
        self.selector = selectors.DefaultSelector()
        self.ranks: dict[int, Wire] = {}
        self.roster: dict[int, Message] = {}
        self.heard_of: dict[int, float] = {}
        self.turns: dict[int, Turn] = {}
        self.pace = Pace(size, silence)
        self.ends: dict[int, int] = {}  # steps begun when all were asked to end
        self.left: set[int] = set()
        self.other_jobs: set[str] = set()  # whose ranks have looked for their own hub here
        self.holding = self.stopped = False
        self.begun = self.now = self.pulse = time.monotonic()
        self.first_farewell: float | None = None

    def run(self) -> None:
        self.listener.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ)
        while not (len(self.left) == self.size or (self.stopped and not self.ranks)):
            for key, _ in self.selector.select(PULSE / 4):
                if key.fileobj is self.listener:
                    self._accept()
                else:
                    self._read(key.fileobj)
            self._look(time.monotonic())
        self._tell_all({"closed": 1})

    def _accept(self) -> None:
        try:
            connection, _ = self.listener.accept()
        except OSError:
            return
        connection.settimeout(2)
        self.selector.register(Wire(connection), selectors.EVENT_READ)

    def _read(self, wire: Wire) -> None:
        messages = wire.receive()
        for message in messages or ():
            if "hello" in message:
                self._welcome(wire, message)
            elif wire in self.ranks.values():
                rank = next(rank for rank, known in self.ranks.items() if known is wire)
                self.heard_of[rank] = self.now
                self._take(rank, message)
        if messages is None:
            self.selector.unregister(wire)
            wire.close()
            for rank in [rank for rank, known in self.ranks.items() if known is wire]:
                del self.ranks[rank]
                if rank not in self.left:
                    self._give_up(f"{self._who(rank)} was lost: it ended without a word")

    def _welcome(self, wire: Wire, hello: Message) -> None:
        if hello["hello"] != self.job:  # another job, which looks for its own hub
            self.other_jobs.add(hello["hello"])
            wire.send({"welcome": self.job})
            return
        rank, size = hello["rank"], hello["size"]
        wire.send({"welcome": self.job})
        self.heard_of[rank] = self.now
        twice = rank in self.ranks
        if not twice:
            self.ranks[rank], self.roster[rank] = wire, hello
        if size != self.size:
            self._give_up(f"rank {rank} was started as one of {size} processes, rank 0 as one of {self.size}")
        elif twice:
            self._give_up(f"two processes were started as rank {rank}: {self._who(rank)} and process {hello['pid']}")
        elif len(self.ranks) == self.size:
            self._tell_all({"roster": [self.roster[rank] for rank in range(self.size)]})

    def _take(self, rank: int, message: Message) -> None:
        if "say" in message:
            self._gather(rank, message)
        elif "failed" in message:
            self._give_up(f"{self._who(rank)} {message['failed']}")
        elif "end" in message and not self.holding:
            self.holding = True
            self._tell_all({"hold": f"rank {rank}: {message['end']}"})
        elif "at" in message:
            self.ends[rank] = message["at"]
            if len(self.ends) == self.size:
                self._tell_all({"end_at": max(self.ends.values())})
        elif "step" in message:
            self.pace.begins(rank, message["step"], self.now)
        elif "done" in message:
            self.pace.ends(rank, self.now)
        elif "busy" in message:
            self.pace.is_busy(rank, message["busy"], self.now)
        elif "bye" in message:
            self.left.add(rank)
            self.first_farewell = self.first_farewell or self.now

    def _gather(self, rank: int, message: Message) -> None:
        number, name = message["turn"], message["name"]
        turn = self.turns.setdefault(number, Turn(name, self.now))
        if turn.name != name:
            at = f"rank {rank} is at {name!r}, others at {turn.name!r}"
            self._give_up(f"the ranks have lost each other: {at}")
            return
        turn.values[rank] = message["say"]
        if len(turn.values) == self.size:
            self._tell_all({"heard": [turn.values[rank] for rank in range(self.size)], "turn": number})
            del self.turns[number]

    def _look(self, now: float) -> None:
        """What follows from the time that has passed."""
        if now - self.now > PAUSED:  # nobody could have been heard meanwhile
            self.heard_of = dict.fromkeys(self.heard_of, now)
            self.pace.forgive(now)
            for turn in self.turns.values():
                turn.begun = now
        self.now = now
        if self.stopped:
            return
        if now - self.pulse > PULSE:
            self.pulse = now
            self._tell_all({"alive": 1})
        if len(self.roster) < self.size and now - self.begun > self.start_timeout:
            missing = [str(rank) for rank in range(self.size) if rank not in self.roster]
            ranks = f"rank{'s' * (len(missing) > 1)} {', '.join(missing)} of {self.size}"
            found = others_found(self.other_jobs)
            self._give_up(f"{ranks} did not come within {self.start_timeout:g} s{found}: see what their own logs say")
        for rank in set(self.ranks) - self.left:
            if now - self.heard_of[rank] > self.silence:
                self._give_up(f"{self._who(rank)} was lost: not a sign of life for {self.silence:g} s")
        if not self.left and (hanging := self.pace.hanging(now)):
            self._give_up(f"{self._hang(hanging[0])}: {hanging[1]}")
        patience = BEHIND * self.silence
        for turn in self.turns.values():
            if now - turn.begun > patience:
                missing = [rank for rank in range(self.size) if rank not in turn.values]
                self._give_up(f"{self._hang(missing)}: others have waited at {turn.name!r} for {patience:g} s")
        patience = FAREWELL * self.silence
        if self.first_farewell and now - self.first_farewell > patience:
            busy = min(set(range(self.size)) - self.left)
            self._give_up(f"{self._who(busy)} is still at work {patience:g} s after another rank has ended")

    def _give_up(self, line: str) -> None:
        if not self.stopped:
            self.stopped = True
            self._tell_all({"stop": line})

    def _tell_all(self, message: Message) -> None:
        for wire in list(self.ranks.values()):
            wire.send(message)

    def _hang(self, ranks: list[int]) -> str:
        named = ", ".join(self._who(rank) for rank in ranks[:3])
        more = f" and {len(ranks) - 3} more" if len(ranks) > 3 else ""
        return f"{named}{more} hang{'s' * (len(ranks) == 1)}"

    def _who(self, rank: int) -> str:
        known = self.roster.get(rank)
        return f"rank {rank} ({known['host']}, process {known['pid']})" if known else f"rank {rank}"


def others_found(jobs: set[str]) -> str:
    """What to add where a rank was not found but other jobs were: with another rank table it is another job."""
    return f" (another job was: {min(jobs)}; is the rank table the same on all servers?)" if jobs else ""


def listen(ports: range, everywhere: bool) -> socket.socket | None:
    """A socket at the first of these ports that is free, for this machine alone or for ``everywhere``."""
    for port in ports:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("0.0.0.0" if everywhere else "127.0.0.1", port))
            listener.listen(1024)
        except OSError:
            listener.close()
            continue
        return listener
    return None
