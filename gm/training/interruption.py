"""A run that is asked to end, by Ctrl-C or by whoever runs it, ends well."""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


class Interruption:
    """While active, the first of these signals only asks the loop to end; a second one is an ordinary Ctrl-C.

    SIGUSR1 is what mpirun hands on to its processes; those of SIGINT and SIGTERM it kills itself, without waiting.
    ``tell`` is called with the name of the first signal.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self, tell: Callable[[str], None] = lambda name: None) -> None:
        self.requested = False
        self._tell = tell
        self._last_words: str | None = None

    def __enter__(self) -> "Interruption":
        self.before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    @contextmanager
    def nothing_to_lose(self, last_words: str) -> Iterator[None]:
        """Within the block a signal, or one from before it, ends the process at once, with these words and code 0.

        For work that is long and leaves nothing behind: a graph can take half an hour to compile, far longer than
        whoever asked will wait. MindSpore cannot be stopped in the middle by an exception, so nothing is unwound.
        """
        self._last_words = last_words
        try:
            if self.requested:
                self._end("asked to end")
            yield
        finally:
            self._last_words = None

    def _ask(self, number: int, frame: object) -> None:
        name = signal.Signals(number).name
        if self._last_words is not None:
            self._end(name)
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._tell(name)
        log.info("%s: ending after this step; once more ends at once", name)

    def _end(self, why: str) -> None:
        log.info("%s: %s", why, self._last_words)
        logging.shutdown()
        os._exit(0)
