"""The benchmark of operators runs, and prints a row for each framework."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools/benchmark/operators.py"


@pytest.mark.slow
@pytest.mark.reference
def test_each_framework_has_a_row():
    command = [sys.executable, TOOL, "--operators", "50", "70", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == ["50", "MindSpore", "torch", "70", "MindSpore", "torch"]


def test_no_operators_are_one_line():
    done = subprocess.run([sys.executable, TOOL, "--operators", "0"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--operators" in done.stderr
    assert "Traceback" not in done.stderr
