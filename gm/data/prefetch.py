"""Doing work before it is asked for, in a fixed order, and much of it at once."""

import gc
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

CHUNK = 64  # handing over a piece of work costs about as much as opening a picture
ROUND = 64  # chunks that threads do before it is tried again whether they are of use
# Seconds. What neither waits nor computes for longer gains nothing by threads, which pass Python's lock around.
QUICK = 200e-6


def for_each(work: Callable[[T], R], items: Sequence[T], workers: int, python: bool = False) -> list[R]:
    """``work`` of every item, in order, by several threads where it waits for the disk or computes without Python.

    ``python``: an item is much work for Python itself, of which threads do no more at once; so they only help to wait.
    """
    chunk = 1 if python else CHUNK

    def several(start: int) -> list[R]:
        return [work(item) for item in items[start : start + chunk]]

    results: list[R] = []
    with ThreadPoolExecutor(workers) as pool:
        while len(results) < len(items):
            begun, used = time.perf_counter(), time.thread_time()
            results += several(len(results))
            taken, used = time.perf_counter() - begun, time.thread_time() - used
            if taken - used > used if python else max(used, taken - used) > QUICK * CHUNK:
                ends = min(len(items), len(results) + ROUND * chunk)
                for found in pool.map(several, range(len(results), ends, chunk)):
                    results += found
    return results


@contextmanager
def uncollected() -> Iterator[None]:
    """Put Python's search for cycles of objects off: where hundreds of thousands are made that stay, it takes a third
    of the time and finds nothing. A function may be decorated with it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def ahead(pool: Executor, work: Callable[[T], R], items: Iterable[T], depth: int) -> Iterator[R]:
    """``work`` of every item in order, up to ``depth`` of them begun before they are asked for."""
    waiting: deque = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


class Prefetcher(Iterator[T]):
    """Runs an iterator in a thread, up to ``depth`` items ahead. Its errors come out of ``next``; ``close`` ends it."""

    _END = object()

    def __init__(self, source: Iterator[T], depth: int):
        self._queue: queue.Queue = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(source,), name="prefetch", daemon=True)
        self._thread.start()

    def __next__(self) -> T:
        if self._closed.is_set():
            raise StopIteration
        item, error = self._queue.get()
        if error is None and item is not self._END:
            return item
        self.close()
        raise error if error is not None else StopIteration

    def close(self) -> None:
        self._closed.set()
        while self._thread.is_alive():  # it may wait for room in the queue
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(0.01)

    def _run(self, source: Iterator[T]) -> None:
        try:
            for item in source:
                self._put(item, None)
                if self._closed.is_set():
                    break
            self._put(self._END, None)
        except BaseException as error:
            self._put(None, error)
        finally:
            close = getattr(source, "close", None)
            if close is not None:
                close()

    def _put(self, item, error: BaseException | None) -> None:
        while not self._closed.is_set():
            try:
                return self._queue.put((item, error), timeout=0.1)
            except queue.Full:
                continue
