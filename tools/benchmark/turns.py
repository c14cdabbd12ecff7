"""Calls that take turns in one process, so that what else the machine does meets them all alike."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


def in_turn(calls: Mapping[Key, Callable[[], None]], rounds: int) -> tuple[dict[Key, float], dict[Key, float]]:
    """Seconds of each call's first turn, in which it compiles, and the median of its ``rounds`` turns after that."""
    seconds: dict[Key, list[float]] = {key: [] for key in calls}
    for _ in range(rounds + 1):
        for key, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[key].append(time.perf_counter() - started)
    first = {key: values[0] for key, values in seconds.items()}
    return first, {key: statistics.median(values[1:]) for key, values in seconds.items()}
