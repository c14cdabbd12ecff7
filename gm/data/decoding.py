"""Pictures decoded and framed ahead of the encoder, by processes of their own where there are enough of them."""

import contextlib
import io
import os
import pickle
import queue
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from gm.data import transforms
from gm.data.notes import hash_bytes
from gm.data.sample import PictureFile
from gm.data.transforms import BadPictureError, Framing
from gm.errors import SuiteError

# Pixels: some three seconds of decoding and framing. With fewer, threads are done before processes have started; with
# more, Python's lock would hold up the encoder's thread.
WORTH_PROCESSES = 100_000_000

# This module and what it imports know nothing of MindSpore: a process that decodes starts in a fraction of a second.


@dataclass(frozen=True)
class Picture:
    """A picture to frame: its name for people, its file, the hash its bytes had when its entry was named."""

    id: str
    file: PictureFile
    content: str
    framing: Framing


def frame(picture: Picture) -> np.ndarray | str:
    """Pixels (H, W, 3) uint8 of the framed picture, or why its bytes cannot be used.

    Raises:
        SuiteError: they are not there any more, or not the same any more: what they are now has another name.
    """
    try:
        data = picture.file.read()
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


class Decoders:
    """Workers that ``frame`` pictures: processes, or for a few pictures the caller's own threads.

    A process is no copy of this one, whose threads a fork can leave hanging, nor does it read the program's main file
    again. It leaves interruptions to the process that started it, and ends with it, however that ends. Use as a context
    manager.
    """

    def __init__(self, workers: int, pixels: int):
        """``pixels``: of the pictures to come, before they are framed."""
        self.threads = ThreadPoolExecutor(workers, thread_name_prefix="pictures")
        self._idle: queue.SimpleQueue[subprocess.Popen | None] = queue.SimpleQueue()
        self._apart = pixels >= WORTH_PROCESSES
        self.processes: list[subprocess.Popen] = []
        for _ in range(workers):
            self._idle.put(None)  # a process starts with its first picture

    def frame(self, picture: Picture) -> np.ndarray | str:
        """What ``frame`` gives. Raises SuiteError also when a process came to a sudden end."""
        if not self._apart:
            return frame(picture)
        process = self._idle.get()
        try:
            if process is None:
                process = _start()
                self.processes.append(process)
            return _ask(process, picture)
        finally:
            self._idle.put(process)

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, *_: object) -> None:
        self.threads.shutdown(wait=True, cancel_futures=True)
        for process in self.processes:
            with contextlib.suppress(OSError):  # of one that has ended already
                process.stdin.close()  # which ends it
        for process in self.processes:
            process.wait()
            process.stdout.close()


def _start() -> subprocess.Popen:
    program = "import sys; sys.path[:] = sys.argv[1:]; from gm.data.decoding import serve; serve()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    # In a session of its own Ctrl-C does not reach it while it is starting either.
    return subprocess.Popen([sys.executable, "-c", program, *sys.path], start_new_session=True, **pipes)


def _ask(process: subprocess.Popen, picture: Picture) -> np.ndarray | str:
    try:
        pickle.dump(picture, process.stdin)
        process.stdin.flush()
        answer = pickle.load(process.stdout)
    except (OSError, EOFError, pickle.UnpicklingError):
        raise SuiteError(
            "a process that decodes pictures came to a sudden end, perhaps for want of memory: "
            "lower --num_parallel_workers and run the same command again"
        ) from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def serve() -> None:
    """A process that decodes: answer every picture that comes in, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(BrokenPipeError), os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # whatever is printed is no answer
        while True:
            try:
                picture = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            try:
                answer = frame(picture)
            except Exception as error:
                answer = error
            pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
            answers.flush()
