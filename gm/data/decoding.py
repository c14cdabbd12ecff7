"""Pictures decoded and framed ahead of the encoder, by processes of their own where there are enough of them."""

import io
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np

from gm.data import transforms
from gm.data.notes import hash_bytes
from gm.data.transforms import BadPictureError, Framing
from gm.errors import SuiteError

# Below this, threads are done before processes have started. Above, Python's lock would hold up the encoder's thread.
WORTH_PROCESSES = 128

# This module and what it imports know nothing of MindSpore: a process that decodes starts in a fraction of a second.


@dataclass(frozen=True)
class Picture:
    """A picture to frame: its name for people, its file, the hash its bytes had when its entry was named."""

    id: str
    path: Path
    content: str
    framing: Framing


def frame(picture: Picture) -> np.ndarray | str:
    """Pixels (H, W, 3) uint8 of the framed picture, or why its bytes cannot be used.

    Raises:
        SuiteError: they are not there any more, or not the same any more: what they are now has another name.
    """
    try:
        data = picture.path.read_bytes()
    except OSError as error:
        raise SuiteError(
            f"picture {picture.id} cannot be read any more ({error.strerror}): run the same command again"
        ) from None
    if hash_bytes(data) != picture.content:
        raise SuiteError(f"picture {picture.id} was changed while the program ran: run the same command again")
    try:
        return transforms.framed(transforms.load(io.BytesIO(data)), picture.framing)
    except BadPictureError as error:
        return str(error)


@contextmanager
def pool(workers: int, count: int) -> Iterator[Executor]:
    """An executor for ``frame`` of ``count`` pictures: processes, or threads where these would not be worth it.

    Raises:
        SuiteError: a process came to a sudden end.
    """
    if count < WORTH_PROCESSES:
        executor: Executor = ThreadPoolExecutor(workers, thread_name_prefix="pictures")
    else:
        # Not forked: a fork of MindSpore's threads can hang.
        executor = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_prepare)
    try:
        yield executor
    except BrokenProcessPool:
        raise SuiteError(
            "a process that decodes pictures came to a sudden end, perhaps for want of memory: "
            "lower --num_parallel_workers and run the same command again"
        ) from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _prepare() -> None:
    """Leave interruptions to the process that started this one, and end with it however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()

    def end_with(sentinel: int) -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=end_with, args=(parent.sentinel,), daemon=True).start()
