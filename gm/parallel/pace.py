"""How the ranks of a training get on, and which of them hangs: told by when they begin and end their steps."""

from collections import Counter

BEHIND = 30  # times the silence: how long ranks may wait for one that compiles, draws, saves or hangs
SLOW = 5  # times the longest step so far: what a step may take
MARGIN = 3.0  # seconds beyond the silence: by then it is known who was stopped, and who is cut off


class Pace:
    """Follows the ranks of a job; ``now`` is in seconds.

    Steps may take ``SLOW`` times as long as the longest before, and ``silence`` seconds and ``MARGIN`` at least. What a
    rank does besides (it compiles, draws, evaluates, saves) may take as long as it takes; the others may have to wait
    for it, so that no step is timed meanwhile.
    """

    def __init__(self, size: int, silence: float):
        self.silence = silence
        self.begun = dict.fromkeys(range(size), 0)  # the newest step, of each rank
        self.behind: dict[int, float] = {}  # ranks that are not at the furthest step, and since when
        self.moved: dict[int, float] = {}  # when a rank last began or ended a step
        self.ended: dict[int, tuple[int, float]] = {}  # the newest step that it has the numbers of, and since when
        self.busy: Counter[int] = Counter()
        self.untimed = set(self.begun)  # ranks of which it is not known how long the present step takes
        self.longest: float | None = None  # seconds of a step

    def begins(self, rank: int, step: int, now: float) -> None:
        self.begun[rank], self.moved[rank] = step, now
        self.behind.pop(rank, None)
        furthest = max(self.begun.values())
        for other, at in self.begun.items():
            if at < furthest:
                self.behind.setdefault(other, now)

    def ends(self, rank: int, now: float) -> None:
        """This rank's device has done all the steps that it began."""
        step = self.begun[rank]
        if rank not in self.untimed and step > self.ended[rank][0]:
            before, since = self.ended[rank]
            self.longest = max(self.longest or 0.0, (now - since) / (step - before))
        self.moved[rank], self.ended[rank] = now, (step, now)
        if not self.busy.total():
            self.untimed.discard(rank)

    def is_busy(self, rank: int, more: int, now: float) -> None:
        """It begins (1) or ends (-1) what is no part of a step; may be in the middle of another such thing."""
        self.busy[rank] += more
        self._start_anew(now)

    def forgive(self, now: float) -> None:
        """The time that has passed is nobody's fault."""
        self.behind = dict.fromkeys(self.behind, now)
        self._start_anew(now)

    def _start_anew(self, now: float) -> None:
        self.untimed = set(self.begun)
        self.moved = dict.fromkeys(self.moved, now)

    def hanging(self, now: float) -> tuple[list[int], str] | None:
        """The ranks that hang, and what shows it; None as long as nobody does."""
        patience = BEHIND * self.silence
        late = [rank for rank, since in self.behind.items() if now - since > patience]
        if late:
            return late, f"step {max(self.begun.values())} was begun by others {patience:g} s ago"
        if self.longest is None or self.busy.total():
            return None
        for rank, since in self.moved.items():
            asked = self.begun[rank] - self.ended.get(rank, (0, 0.0))[0]
            patience = max(self.silence + MARGIN, SLOW * self.longest * asked)
            if now - since > patience:
                last = min(self.begun.values())
                late = [one for one, at in self.begun.items() if at == last]
                known = f"after steps of {self.longest:.1f} s at most"
                return late, f"no step has begun or ended for {patience:.0f} s, {known}"
        return None
