"""The benchmark of sampling runs, and prints a row for each contestant."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools/benchmark/sampling.py"


@pytest.mark.slow
@pytest.mark.reference
def test_both_contestants_have_a_row():
    options = ["--rounds", "1", "--batches", "1", "--batch_size", "1", "--sample_step", "2"]
    done = subprocess.run([sys.executable, TOOL, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    title, theirs, ours = done.stdout.splitlines()
    assert title.startswith("1 pictures of 64x64, 2 steps")
    assert theirs.startswith("diffusers, ")
    assert ours.startswith("suite, MindSpore ")
    assert all("step_seconds" in row for row in (theirs, ours))


def test_weights_that_are_not_there_are_one_line():
    done = subprocess.run([sys.executable, TOOL, "--weight", "nothing.ckpt"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "error: no such weight file: nothing.ckpt\n")
