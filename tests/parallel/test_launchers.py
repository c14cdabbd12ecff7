"""The documented commands, as written, with two processes: one result whoever starts them, and nothing left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gm.parallel import processes, rank_table
from gm.weights.files import open_weights

pytestmark = [pytest.mark.slow, pytest.mark.alone]

ROOT = Path(__file__).parents[2]
COLOURS = ("red", "green", "blue", "yellow")
STEPS = 4
# The tiny recipe on a network that compiles in seconds; --config given again adds to what the command names.
TINY = ["--config", str(ROOT / "configs/training/tiny_sdxl.yaml"), "--tokenizer", str(ROOT / "demo/tiny/tokenizer")]
TINY += ["--device_target", "CPU", "--lr_warmup_steps", "0", "--lr_scheduler", "constant", "--save_ckpt_interval", "2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, write_random_model, families):
    """A folder with pictures, small weights and a rank table for two CPU processes."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "data").mkdir()
    rng = np.random.default_rng(3)
    for number in range(8):
        pixels = rng.integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "data" / f"{number}.png")
        (folder / "data" / f"{number}.txt").write_text(f"a {COLOURS[number % 4]} circle")
    unet = replace(families["sd-1"].unet, channels=(32,), down_depths=((1,),), mid_depth=1, up_depths=((1, 1),))
    write_random_model(folder / "small.ckpt", replace(families["sd-1"], unet=unet))
    rank_table.make("10.0.0.1", range(2), {0: "192.168.1.0", 1: "192.168.1.1"}).write(folder / "hccl_2p.json")
    return folder


def environment():
    variables = {name: value for name, value in os.environ.items() if name not in processes.VARIABLES}
    scripts = str(Path(sys.executable).parent)
    return variables | {
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "DEVICE_TARGET": "CPU",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",  # on a machine with fewer cores
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(place, *command):
    return subprocess.Popen(
        command,
        cwd=place,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(place, *command, code=0) -> str:
    process = start(place, *map(str, command))
    try:
        output, _ = process.communicate(timeout=150)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code, output
    assert not left_over(place)
    return output


def left_over(place, seconds=10) -> list[str]:
    """Processes of the job that outlive it."""
    deadline = time.monotonic() + seconds
    while True:
        listing = subprocess.run(["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
        lines = [line for line in listing.splitlines() if str(place) in line and "train.py" in line]
        if not lines or time.monotonic() > deadline:
            return lines
        time.sleep(0.1)


def flags(place, name, batch=2, steps=STEPS) -> list[str]:
    """What the tiny model adds to the documented commands."""
    cache = ["--cache_latent", "True", "--cache_text_embedding", "True", "--cache_path", str(place / "cache")]
    folder = ["--save_path", str(place / "runs"), "--save_path_with_time", "False", "--run_name", name]
    weights = ["--weight", str(place / "small.ckpt")]
    return [*TINY, *weights, *cache, *folder, "--max_train_steps", str(steps), "--per_batch_size", str(batch)]


def seed_command(place, size) -> list[str]:
    """The documented mpirun command, letter for letter but for the number and the data."""
    recipe = ROOT / "configs/training/sd_xl_base_finetune_multi_graph_910b.yaml"
    command = f"mpirun --allow-run-as-root -n {size} python {ROOT}/train.py --config {recipe}".split()
    more = ["--data_path", str(place / "data"), "--max_device_memory", "59GB", "--param_fp16", "True"]
    return [*command, "--weight", "", *more, "--is_parallel", "True"]


def result(place, name) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses and final weights of a run."""
    lines = (place / "runs" / name / "metrics.jsonl").read_text().splitlines()
    losses = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
    with open_weights(place / "runs" / name / "weights" / f"unet_{len(losses)}.ckpt") as weights:
        return losses, {key: weights.read(key).copy() for key in weights.names()}


@pytest.fixture(scope="module")
def cached(place):
    """The cache, made by two ranks of the script."""
    table, data = place / "hccl_2p.json", place / "data"
    output = run(place, "bash", ROOT / "scripts/cache_data.sh", table, 0, 2, 2, data, *flags(place, "cache"))
    assert "ranks 0 to 1 of 2: logs in logs_for_cache" in output
    return place


@pytest.fixture(scope="module")
def by_script(cached):
    """What two ranks of the script make."""
    script, table = ROOT / "scripts/run_distribute_vanilla_ft_910b.sh", cached / "hccl_2p.json"
    output = run(cached, "bash", script, table, 0, 2, 2, cached / "data", *flags(cached, "script"))
    assert "rank 0 of 2 by rank table" in output
    return result(cached, "script")


def test_the_scripts_cache_and_train_on_two_ranks(by_script, cached):
    losses, _ = by_script
    assert len(losses) == STEPS
    assert all(np.isfinite(losses))
    assert [len((cached / logs / "log_1.txt").read_text()) > 0 for logs in ("logs_for_cache", "logs_for_distribute")]
    assert len(list((cached / "cache" / "latents").glob("*.safetensors"))) == 1


def test_msrun_gives_the_same_numbers(by_script, cached):
    command = ["msrun", "--worker_num=2", "--local_worker_num=2", "--join=True", "--log_dir=logs_for_msrun"]
    command += [f"--master_port={free_port()}", ROOT / "train.py", "--data_path", cached / "data"]
    output = run(cached, *command, *flags(cached, "msrun"))
    assert "rank 0 of 2 by msrun" in output
    same(result(cached, "msrun"), by_script)


def test_mpirun_gives_the_same_numbers(by_script, cached):
    output = run(cached, *seed_command(cached, 2), *flags(cached, "mpirun"), "--param_fp16", "False")
    assert "rank 0 of 2 by mpirun" in output
    assert "[rank 1]" not in output  # it has nothing to worry about
    same(result(cached, "mpirun"), by_script)


def same(one, other):
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    assert all(np.array_equal(one[1][name], other[1][name]) for name in one[1])
