"""The table of kernels: what MindSpore's profiler writes is read, by type, with medians of the steps."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools/benchmark/kernels.py"


@pytest.fixture
def kernels(monkeypatch):
    monkeypatch.syspath_prepend(TOOL.parent)
    import kernels

    return kernels


def test_durations_are_medians_by_type(kernels, tmp_path):
    table = tmp_path / "run_ascend_ms/FRAMEWORK/cpu_op_execute_timestamp_0.txt"
    table.parent.mkdir(parents=True)
    table.write_text(
        "Default/loss/unet-UNet/MatMul-op64;HostCpuOps;17953,0.5,0 17954,0.25,0 17955,9.0,0 \n"
        "Gradients/Default/loss/AddN-op11;HostCpuOps;17953,0.01,0 17954,0.02,0 17955,0.03,1 \n"
        "Default/MatMul-op1;HostCpuOps;17953,1.0,0 17954,2.0,0 17955,3.0,0 \n"
    )
    assert kernels.durations(tmp_path) == {"MatMul": [0.5, 2.0], "AddN": [0.02]}


def test_an_unknown_model_is_one_line():
    done = subprocess.run([sys.executable, TOOL, "--model", "huge"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "huge" in done.stderr
    assert "Traceback" not in done.stderr
