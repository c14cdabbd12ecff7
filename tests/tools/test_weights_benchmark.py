"""The benchmark of the weight tools runs, and what it measures of loading keeps its promise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools/benchmark/weights.py"


@pytest.fixture(scope="module")
def benchmark(load_door):
    return load_door("tools/benchmark/weights.py")


@pytest.mark.slow
def test_every_task_of_files_runs_and_is_cleared_away(tmp_path, benchmark):
    names = [name for name in benchmark.tasks(tmp_path, tmp_path, tmp_path) if name != "load"]
    command = [sys.executable, TOOL, "--folder", tmp_path, "--model", "tiny", "--tasks", *names]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()[2:]}
    assert list(rows) == names
    assert all(len(row) == 8 and float(row[-1]) > 10 for row in rows.values())
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_loading_takes_the_memory_of_the_parameters_and_little_more(tmp_path, benchmark):
    """665 MB of float32 parameters from a float16 file, in a process of its own."""
    path = tmp_path / "unet.safetensors"
    shapes = {n: s for n, s in benchmark.expected_shapes(benchmark.MODELS["slim"]).items() if n.startswith("model.")}
    benchmark.write_synthetic(path, shapes, seed=0)
    done = subprocess.run([sys.executable, TOOL, "--measure_load", path], capture_output=True, text=True)
    figures = json.loads(done.stdout)
    assert figures["parameters"] == pytest.approx(166_260_228 * 4 / 2**20)
    assert 1 < figures["ratio"] <= 1.1
