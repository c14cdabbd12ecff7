"""The benchmark of attention runs, and prints a row for each contestant."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools/benchmark/attention.py"


@pytest.mark.slow
@pytest.mark.reference
@pytest.mark.parametrize("options", [["--rounds", "1"], ["--memory"]])
def test_every_contestant_has_a_row(options):
    command = [sys.executable, TOOL, "--shapes", "2x8x4", "--pieces", "4", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [row[0] for row in rows] == ["torch", "whole", "2^4"]
    assert all("forward" in row and "both" in row for row in rows)


def test_a_shape_that_is_none_is_one_line():
    done = subprocess.run([sys.executable, TOOL, "--shapes", "4096"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --shapes takes heads x queries x keys")
