"""Start processes as the ranks of one job, as a rank table does, and wait for them."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gm.parallel import processes, rank_table

ROOT = Path(__file__).resolve().parents[2]


def start(folder: Path, size: int, command: Sequence[str | Path], **variables: str) -> list[subprocess.Popen]:
    """``python command...`` ``size`` times; what rank R says is in ``folder/log_R.txt``."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in processes.VARIABLES}
    environment |= {"PYTHONPATH": str(ROOT), **variables}
    if size > 1:
        table = folder / f"hccl_{size}.json"
        rank_table.make("127.0.0.1", range(size), {card: f"192.168.0.{card + 1}" for card in range(size)}).write(table)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment |= {"RANK_TABLE_FILE": str(table), "RANK_SIZE": str(size), "MS_SCHED_PORT": str(port)}
    started = []
    for rank in range(size):
        own = {"RANK_ID": str(rank), "DEVICE_ID": str(rank)} if size > 1 else {}
        with (folder / f"log_{rank}.txt").open("w") as log:
            words = [sys.executable, *map(str, command)]
            started.append(
                subprocess.Popen(words, cwd=ROOT, env=environment | own, stdout=log, stderr=subprocess.STDOUT)
            )
    return started


def wait(started: Sequence[subprocess.Popen], timeout: float = 300) -> list[int]:
    """Exit codes by rank; nothing is left running."""
    try:
        return [process.wait(timeout) for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.wait()
