"""How long things take: the phases of the start, the parts of a run, the compilations."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gm import compilation
from gm.compilation import Compilation

log = logging.getLogger(__name__)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Say how long a phase of the start-up took."""
    started = time.monotonic()
    yield
    log.info("%s: ready in %.1f s", what, time.monotonic() - started)


class Stopwatch:
    """Adds up the seconds of each kind of work. Work within other work counts as its own kind only."""

    def __init__(self) -> None:
        self.seconds: Counter = Counter()
        self._within = 0.0  # spent on kinds of their own inside the work being timed

    @contextmanager
    def __call__(self, kind: str) -> Iterator[Callable[[], float]]:
        """Time the block; what it yields gives, after the block, the seconds the block took of this kind."""
        before, self._within = self._within, 0.0
        started, own = time.monotonic(), 0.0
        try:
            yield lambda: own
        finally:
            spent = time.monotonic() - started
            own = spent - self._within
            self.seconds[kind] += own
            self._within = before + spent

    def book(self, kind: str, seconds: float) -> None:
        """Count ``seconds`` that have just passed as ``kind``, not as the work they were part of."""
        self.seconds[kind] += seconds
        self._within += seconds

    def split(self) -> str:
        """The share of each kind in words: ``82 % step, 11 % compile``, largest first, from one percent on."""
        total = sum(self.seconds.values())
        shares = [(seconds / total, kind) for kind, seconds in self.seconds.items() if seconds >= 0.01 * total]
        return ", ".join(f"{share:.0%} {kind}".replace("%", " %") for share, kind in sorted(shares, reverse=True))


class Compilations:
    """The compilations of this process that come to pass from now on, each timed as ``compile``."""

    def __init__(self, watch: Stopwatch):
        self.watch, self._known = watch, len(compilation.done())

    def book(self) -> tuple[Compilation, ...]:
        """Those since the last time; to be called within the work that compiled."""
        new = compilation.done()[self._known :]
        self._known += len(new)
        self.watch.book("compile", sum(one.seconds for one in new))
        return new
