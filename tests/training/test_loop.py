"""The life of a run: interrupted, killed, poisoned and resumed, nothing is lost and nothing differs."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gm.errors import SuiteError, UsageError
from gm.training.metrics import read
from tests.training.small_run import configuration, start

STEPS = 10
SCRIPT = Path(__file__).with_name("small_run.py")
ROOT = SCRIPT.parents[2]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    """The folder of a run from its first step to its last."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert run(folder).returncode == 0
    return folder


def run(folder: Path, *events: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(SCRIPT), str(folder), str(STEPS), *events]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, cwd=ROOT)


def assert_same_end(one: Path, other: Path) -> None:
    """Weights, averages and optimizer to the bit, and every step logged once with the same loss."""
    for name in (f"weights/unet_{STEPS}.ckpt", f"weights/unet_ema_{STEPS}.ckpt", f"state/step_{STEPS}/optimizer.ckpt"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    curves = [
        [(r["step"], r["loss"], r["lr"], r["grad_norm"]) for r in read(path / "metrics.jsonl")] for path in (one, other)
    ]
    assert curves[0] == curves[1]
    assert [record[0] for record in curves[0]] == list(range(1, STEPS + 1))


def test_a_run_leaves_the_folder_it_promises(uninterrupted):
    for name in ("metrics.jsonl", "plots/loss.png", "tensorboard", "latest", f"weights/unet_{STEPS}.ckpt"):
        assert (uninterrupted / name).exists(), name
    assert (uninterrupted / "latest").read_text().strip() == f"step_{STEPS}"
    record = read(uninterrupted / "metrics.jsonl")[0]
    assert {"step", "loss", "raw_loss", "lr", "grad_norm", "images_per_second", "seconds"} <= set(record)
    assert not list(uninterrupted.rglob("*.tmp"))


def test_killed_and_resumed_equals_uninterrupted(uninterrupted, tmp_path):
    folder = tmp_path / "killed"
    assert run(folder, "7=SIGKILL").returncode == -signal.SIGKILL
    assert (folder / "latest").read_text().strip() == "step_4"
    assert run(folder, "resume").returncode == 0
    assert_same_end(uninterrupted, folder)


def test_sigterm_saves_says_how_to_go_on_and_resumes_exactly(uninterrupted, tmp_path):
    folder = tmp_path / "stopped"
    stopped = run(folder, "6=SIGTERM")
    assert stopped.returncode == 0, stopped.stderr
    assert "--resume latest" in stopped.stderr
    assert (folder / "latest").read_text().strip() == "step_6"
    assert run(folder, "resume").returncode == 0
    assert_same_end(uninterrupted, folder)


@pytest.mark.parametrize("log_interval", [1, 4])
def test_not_a_number_stops_with_the_step_named_and_saves(small_unet, make_batch, tmp_path, log_interval):
    config = configuration(tmp_path / "poisoned", STEPS, train__log_interval=log_interval)
    poisoned = start(config, small_unet(), make_batch, {3: "nan"})
    with pytest.raises(SuiteError, match="step 3: loss nan"):
        poisoned.go()
    assert (poisoned.folder.path / "latest").exists()
    progress = json.loads(next(poisoned.folder.path.glob("state/*/state.json")).read_text())
    assert progress["step"] == poisoned.done


def test_rotation_keeps_the_newest_and_the_last(small_unet, make_batch, tmp_path):
    config = configuration(tmp_path / "rotated", 5, train__save_ckpt_interval=1, train__max_num_ckpt=2)
    rotated = start(config, small_unet(), make_batch)
    rotated.go()
    assert rotated.folder.saved_steps() == [4, 5]
    names = {path.name for path in (rotated.folder.path / "weights").iterdir()}
    assert names == {"unet_4.ckpt", "unet_5.ckpt", "unet_ema_4.ckpt", "unet_ema_5.ckpt"}
    assert len(rotated.step.compile_cache) == 1


def test_a_run_is_not_overwritten(uninterrupted, small_unet, make_batch):
    with pytest.raises(SuiteError, match=r"--resume latest"):
        start(configuration(uninterrupted, STEPS), small_unet(), make_batch)


def test_resuming_what_is_not_there_is_told(small_unet, make_batch, tmp_path):
    with pytest.raises(UsageError, match="no run to resume"):
        start(configuration(tmp_path / "none", STEPS, train__resume="latest"), small_unet(), make_batch)


@pytest.mark.parametrize("damage", ["state.json", "optimizer.ckpt"])
def test_a_damaged_state_is_told(uninterrupted, small_unet, make_batch, tmp_path, damage):
    folder = tmp_path / "damaged"
    shutil.copytree(uninterrupted, folder)
    file = folder / "state" / f"step_{STEPS}" / damage
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(SuiteError, match=damage):
        start(configuration(folder, STEPS + 2, train__resume="latest"), small_unet(), make_batch)
