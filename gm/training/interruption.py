"""A run that is asked to end, by Ctrl-C or by whoever runs it, ends well."""

import logging
import signal

log = logging.getLogger(__name__)


class Interruption:
    """While active, the first SIGINT or SIGTERM only asks the loop to end; a second one is an ordinary Ctrl-C."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "Interruption":
        self.before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        log.info("%s: ending after this step; once more ends at once", signal.Signals(number).name)
