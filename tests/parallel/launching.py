"""The documented commands on a network that compiles in seconds, and what becomes of them: output, code, processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np

from gm.parallel import processes
from gm.training.run_folder import RunFolder
from gm.training.state import read_progress
from gm.weights.files import open_weights

ROOT = Path(__file__).parents[2]
SCRIPT, CACHE_SCRIPT = ROOT / "scripts/run_distribute_vanilla_ft_910b.sh", ROOT / "scripts/cache_data.sh"
# How each launcher tells a process its rank.
RANK = ("RANK_ID", "OMPI_COMM_WORLD_RANK", "MS_NODE_ID")
# The tiny recipe; --config given again adds to what the command names. An epsilon as small as the default makes
# something of the rounding of gradients that are zero, and that depends on who adds them up.
TINY = ["--config", str(ROOT / "configs/training/tiny_sdxl.yaml"), "--tokenizer", str(ROOT / "demo/tiny/tokenizer")]
TINY += ["--device_target", "CPU", "--lr_warmup_steps", "0", "--lr_scheduler", "constant", "--save_ckpt_interval", "2"]
TINY += ["--learning_rate", "1e-3", "--epsilon", "1e-6", "--save_path_with_time", "False"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def taken_ports(count: int) -> Iterator[int]:
    """The first of ``count`` ports in a row that are taken as long as this lasts."""
    while True:
        with ExitStack() as stack:
            first = free_port()
            try:
                for number in range(count):
                    one = stack.enter_context(socket.socket())
                    one.bind(("127.0.0.1", first + number))
                    one.listen()
            except (OSError, OverflowError):
                continue  # something else has one of them, or there are no more
            yield first
            return


def flags(place: Path, name: str, batch: int = 2, steps: int = 4, kept: bool = True) -> list[str]:
    """What the tiny model adds to the documented commands; graphs are ``kept`` from one job to the next."""
    cache = ["--cache_latent", "True", "--cache_text_embedding", "True", "--cache_path", str(place / "cache")]
    run = ["--save_path", str(place / "runs"), "--run_name", name, "--weight", str(place / "small.ckpt")]
    graphs = ["--compile_cache", str(place / "graphs")] if kept else []
    return [*TINY, *cache, *run, *graphs, "--max_train_steps", str(steps), "--per_batch_size", str(batch)]


def by_table(place: Path, table: str, start: int, end: int, size: int, script: Path = SCRIPT) -> list:
    return ["bash", script, place / table, start, end, size, place / "data"]


def by_mpirun(place: Path, size: int) -> list:
    """The seed's command, letter for letter but for the number and the data."""
    recipe = ROOT / "configs/training/sd_xl_base_finetune_multi_graph_910b.yaml"
    command = f"mpirun --allow-run-as-root -n {size} python {ROOT}/train.py --config {recipe}".split()
    more = ["--data_path", place / "data", "--max_device_memory", "59GB", "--param_fp16", "True"]
    return [*command, "--weight", "", *more, "--is_parallel", "True"]


def by_msrun(place: Path) -> list:
    command = ["msrun", "--worker_num=2", "--local_worker_num=2", "--join=True", "--log_dir=logs_for_msrun"]
    return [*command, f"--master_port={free_port()}", ROOT / "train.py", "--data_path", place / "data"]


class Job:
    """A command that runs in a folder of its own; nothing it started outlives the ``with`` block."""

    def __init__(self, folder: Path, *command, **variables):
        folder.mkdir(exist_ok=True)
        self.folder = folder.resolve()
        environment = {name: value for name, value in os.environ.items() if name not in processes.VARIABLES}
        environment |= {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHON": sys.executable,
            "DEVICE_TARGET": "CPU",
            "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",  # more processes than cores
        }
        self.process = subprocess.Popen(
            list(map(str, command)),
            cwd=folder,
            env=environment | {name: str(value) for name, value in variables.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.output = ""

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        for pid in inhabitants(self.folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def ended(self, within: float) -> int:
        """Its exit code; its output is in ``output``, and none of its processes is left."""
        self.output, _ = self.process.communicate(timeout=within)
        deadline = time.monotonic() + 10
        while inhabitants(self.folder) and time.monotonic() < deadline:
            time.sleep(0.1)
        left = [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in inhabitants(self.folder)]
        assert not left, self.output
        return self.process.returncode

    def pid(self, rank: int) -> int:
        (pid,) = [pid for pid in inhabitants(self.folder) if rank_of(pid) == str(rank)]
        return pid

    def wait(self, ready: Callable[[], bool], within: float = 120) -> None:
        deadline = time.monotonic() + within
        while not ready():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)


def run(folder: Path, *command, **variables) -> str:
    """Run it to its good end; its output."""
    with Job(folder, *command, **variables) as job:
        assert job.ended(within=150) == 0, job.output
        return job.output


def inhabitants(home: Path) -> list[int]:
    """The processes that work in a folder: launchers, ranks and those that keep watch."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if Path(os.readlink(folder / "cwd")) == home:
                found.append(int(folder.name))
    return found


def rank_of(pid: int) -> str | None:
    """Of a process that runs train.py as a rank, else None."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        variables = dict(word.split(b"=", 1) for word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if word)
    except (OSError, ValueError):
        return None
    if len(words) < 2 or not words[1].endswith(b"train.py"):
        return None
    return next((variables[name.encode()].decode() for name in RANK if name.encode() in variables), None)


def log_of(job: Path, rank: int) -> str:
    """Of a rank that a script started."""
    return "".join(path.read_text() for path in job.glob(f"logs_for_*/log_{rank}.txt"))


def losses(place: Path, name: str) -> list[float]:
    lines = (place / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


def weights(place: Path, name: str, step: int) -> dict[str, np.ndarray]:
    with open_weights(place / "runs" / name / "weights" / f"unet_{step}.ckpt") as file:
        return {key: file.read(key).copy() for key in file.names()}


def saved(place: Path, name: str) -> int:
    """The step that --resume latest would go on after; its files are those that were written."""
    folder = place / "runs" / name
    state = folder / "state" / (folder / "latest").read_text().strip()
    step = read_progress(RunFolder(folder, state)).step
    assert weights(place, name, step)
    return step
