"""How long things take."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Say how long a phase of the start-up took."""
    started = time.monotonic()
    yield
    log.info("%s: ready in %.1f s", what, time.monotonic() - started)
