"""The quickstart itself, with the shipped weights: the figures the README promises, on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
TRAINING = "configs/training/tiny_sdxl.yaml"
LONGEST = 400  # seconds
PHASES = ["convert", "before", "draw", "cache", "train", "merge", "after", "judge"]

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(1200)]


def command(*words: str | Path) -> subprocess.CompletedProcess:
    """A command in the repository; it must succeed."""
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """The folder of a whole quickstart."""
    folder = tmp_path_factory.mktemp("quickstart")
    command("demo/tiny/quickstart.py", "--out", folder)
    return folder


@pytest.fixture(scope="module")
def summary(out) -> dict:
    return json.loads((out / "summary.json").read_text(encoding="utf-8"))


def test_fine_tuning_teaches_and_the_base_keeps_what_it_knew(summary):
    assert summary["matched_before"] <= 0.25
    assert summary["matched_after"] >= 0.80
    assert summary["kept_before"] >= 0.80
    assert summary["kept_after"] >= 0.80


def test_what_was_never_shown_together_is_learned_too(summary):
    held_out = [item["after"]["matched"] for item in summary["prompts"] if item["held_out"]]
    assert sum(held_out) / len(held_out) >= 0.5


def test_it_says_how_long_it_took(summary):
    assert list(summary["seconds"]) == [*PHASES, "total"]
    total = summary["seconds"]["total"]
    assert total == pytest.approx(sum(summary["seconds"][phase] for phase in PHASES), abs=0.1)
    if total > LONGEST:  # a busy machine is no defect, so it does not fail; docs/performance.md has the measured time
        warnings.warn(
            f"the quickstart took {total:.0f} s; on two idle cores it takes less than {LONGEST}", stacklevel=1
        )


def test_it_leaves_pictures_a_loss_curve_and_a_dataset_like_a_users(out, summary):
    for name in ("grid.png", "loss.png"):
        with Image.open(out / name) as picture:
            picture.verify()
    for item in summary["prompts"]:
        assert (out / item["before"]["file"]).exists()
        assert (out / item["after"]["file"]).exists()
    captions = sorted(path.stem for path in (out / "dataset").glob("*.txt"))
    assert captions == sorted(path.stem for path in (out / "dataset").glob("*.png"))


def test_a_second_run_does_nothing_again(out):
    before = {path: path.read_bytes() for path in out.rglob("*.json")}
    started = time.monotonic()
    again = command("demo/tiny/quickstart.py", "--out", out)
    assert time.monotonic() - started < 30
    assert again.stdout.count("done before") == len(PHASES)
    assert "$ python" not in again.stdout
    assert before == {path: path.read_bytes() for path in out.rglob("*.json")}


def test_two_runs_give_the_same_losses_weights_and_pictures(out, tmp_path):
    """A short training from the same cache and pictures from it, each done twice, byte for byte."""
    recipe = ["--config", TRAINING, "--weight", out / "tiny_sdxl.ckpt", "--data_path", out / "dataset"]
    cached = ["--cache_latent", "True", "--cache_text_embedding", "True", "--cache_path", out / "cache"]
    steps, results = 12, []
    for _ in range(2):
        run = tmp_path / "run"
        if run.exists():
            run.rename(tmp_path / "first")
        command(
            *("train.py", *recipe, *cached, "--max_train_steps", str(steps)),
            *("--save_path", tmp_path, "--run_name", "run"),
        )
        unet, tuned = run / "weights" / f"unet_{steps}.ckpt", run / "tuned.ckpt"
        command(
            *("tools/weight_merge/merge_weight.py", "--base_weight", out / "tiny_sdxl.ckpt"),
            *("--additional_weights", unet, "--save_path", tuned),
        )
        command(
            *("demo/sampling_without_streamlit.py", "--config", "configs/inference/tiny_sdxl.yaml"),
            *(
                "--weight",
                tuned,
                "--prompt",
                "a red star on grey",
                "--num_images",
                "3",
                "--save_path",
                run / "pictures",
            ),
        )
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        pictures = {path.name: path.read_bytes() for path in (run / "pictures").iterdir()}
        results.append(([row["loss"] for row in rows if "loss" in row], unet.read_bytes(), pictures))
    (losses, _, pictures), second = results
    assert len(losses) == steps
    assert len(pictures) >= 3
    assert (losses, results[0][1], pictures) == second


def test_ctrl_c_is_one_line_and_the_same_command_goes_on(out, tmp_path):
    """Stopped in the middle of the first picture-making phase; what was done before it stays done."""
    start = [sys.executable, "demo/tiny/quickstart.py", "--out", str(tmp_path)]
    process = subprocess.Popen(start, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "sampling_without_streamlit" not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()
    time.sleep(3)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 130
    assert err == "error: interrupted: run the same command again to go on\n"
    assert (tmp_path / "tiny_sdxl.ckpt").read_bytes() == (out / "tiny_sdxl.ckpt").read_bytes()
    assert not list(tmp_path.rglob("*.tmp"))
    process = subprocess.Popen(start, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = [process.stdout.readline() for _ in range(4)]
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=90)
    assert "done before" in lines[1]
    assert "before" in lines[3]
