"""The life of a run: interrupted, killed, poisoned and resumed, nothing is lost and nothing differs."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from mindspore.common import api

from gm.errors import SuiteError, UsageError
from gm.training.metrics import read
from gm.training.run import checkpoint_due
from gm.weights.files import open_weights
from tests.training.small_run import configuration, start

STEPS = 10
SCRIPT = Path(__file__).with_name("small_run.py")
ROOT = SCRIPT.parents[2]


def begin(folder: Path, *words: str) -> subprocess.Popen:
    """A run in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(SCRIPT), str(folder), str(STEPS), *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )


def run(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """The same, to its end."""
    with begin(folder, *words) as process:
        stdout, stderr = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    """The folder of a run from its first step to its last."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    done = run(folder)
    assert done.returncode == 0, done.stderr
    return folder


def assert_same_end(one: Path, other: Path) -> None:
    """Weights, averages and optimizer to the bit, and every step logged once with the same loss."""
    for name in (f"weights/unet_{STEPS}.ckpt", f"weights/unet_ema_{STEPS}.ckpt", f"state/step_{STEPS}/optimizer.ckpt"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    curves = [
        [(r["step"], r["loss"], r["lr"], r["grad_norm"]) for r in read(path / "metrics.jsonl")] for path in (one, other)
    ]
    assert curves[0] == curves[1]
    assert [record[0] for record in curves[0]] == list(range(1, STEPS + 1))


def latest(folder: Path) -> str:
    return (folder / "latest").read_text().strip()


def test_a_run_leaves_the_folder_it_promises(uninterrupted):
    for name in ("metrics.jsonl", "plots/loss.png", "tensorboard", "latest", f"weights/unet_{STEPS}.ckpt"):
        assert (uninterrupted / name).exists(), name
    assert latest(uninterrupted) == f"step_{STEPS}"
    first, second, *_ = read(uninterrupted / "metrics.jsonl")
    assert {"step", "loss", "raw_loss", "lr", "grad_norm", "images_per_second", "seconds", "tflops"} <= set(first)
    assert "compile_seconds" in first
    assert "compile_seconds" not in second
    assert not list(uninterrupted.rglob("*.tmp"))


@pytest.mark.slow
def test_killed_anywhere_and_resumed_equals_uninterrupted(uninterrupted, tmp_path):
    """kill -9 from outside at a random moment, while every step is followed by a save."""
    folder, steps, delay = tmp_path / "killed", random.randint(2, STEPS - 2), random.uniform(0, 0.06)
    with begin(folder, "pause=0.05", "train.save_ckpt_interval=1") as process:
        while len(read(folder / "metrics.jsonl")) < steps and process.poll() is None:
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
        _, errors = process.communicate()
    told = f"{steps} steps, {delay} s: {errors}"
    assert process.returncode == -signal.SIGKILL, told
    assert int(latest(folder).removeprefix("step_")) >= steps - 1, told
    again = run(folder, "resume")
    assert again.returncode == 0, told + again.stderr
    assert_same_end(uninterrupted, folder)


@pytest.mark.slow
def test_sigterm_saves_says_how_to_go_on_and_resumes_exactly(uninterrupted, tmp_path):
    folder = tmp_path / "stopped"
    stopped = run(folder, "6=SIGTERM")
    assert stopped.returncode == 0, stopped.stderr
    assert "interrupted after step 6 of 10: step 6 is saved, go on with --resume latest" in stopped.stderr
    assert latest(folder) == "step_6"
    assert run(folder, "resume").returncode == 0
    assert_same_end(uninterrupted, folder)


@pytest.mark.slow
def test_sigterm_while_compiling_ends_at_once_and_leaves_the_state_as_it_is(uninterrupted, tmp_path):
    folder = tmp_path / "compiling"
    shutil.copytree(uninterrupted, folder)
    shutil.rmtree(folder / "state" / f"step_{STEPS}")
    (folder / "latest").write_text("step_8\n")
    before = {path: path.read_bytes() for name in ("weights", "state") for path in (folder / name).rglob("*.*")}
    with begin(folder, "resume") as process:
        lines = []
        while not lines or "compiling the step for 64x64 pictures, 1 of 1" not in lines[-1]:
            lines.append(process.stderr.readline())
            assert lines[-1], "".join(lines)
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "ended while compiling; step 8 is saved, go on with --resume latest" in rest
    assert {path: path.read_bytes() for name in ("weights", "state") for path in (folder / name).rglob("*.*")} == before


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_what_was_saved_is_intact(uninterrupted, tmp_path):
    folder = tmp_path / "full"
    full = run(folder, "6=full")
    assert full.returncode == 1, full.stderr
    assert full.stderr.splitlines()[-1].startswith("error: File too large at ")
    assert full.stderr.endswith("; step 4 is saved, go on with --resume latest\n")
    assert "Traceback" not in full.stderr
    assert latest(folder) == "step_4"
    names = {str(path.relative_to(folder)) for name in ("weights", "state") for path in (folder / name).rglob("*.*")}
    assert names == {
        "weights/unet_4.ckpt", "weights/unet_ema_4.ckpt", "state/step_4/optimizer.ckpt", "state/step_4/state.json",
    }  # fmt: skip
    assert run(folder, "resume").returncode == 0
    assert_same_end(uninterrupted, folder)


@pytest.fixture(scope="module")
def eventful(tmp_path_factory):
    """A run of 50 steps in three picture sizes that evaluates, draws and rotates; the run and its compilations."""
    from tests.training.small_run import conftest

    parts = conftest()
    ms.set_context(mode=ms.GRAPH_MODE)
    network = parts.SmallUNet()
    drawn = []

    def draw(folder):
        batch = parts.batch_of(2, seed=7, side=12)
        vector = np.concatenate([batch["pooled"], np.zeros((2, 6 * 256), np.float32)], axis=1)
        inputs = (batch["noise"], batch["timesteps"], batch["context"], vector)
        drawn.append((folder.name, network(*map(Tensor, inputs)).asnumpy()))
        return {"clip_score_mean": 20.0 + len(drawn)}

    held_out = [parts.batch_of(2, seed=-number - 1 & 0xFFFF) | {"weight": np.float32([1, number])} for number in (0, 1)]
    config = configuration(
        tmp_path_factory.mktemp("runs") / "eventful", 50,
        train__log_interval=7, train__max_num_ckpt=2, train__save_ckpt_interval=1000, train__checkpoint_every=9,
        train__peak_tflops=1.0, validation__eval_interval=20, validation__infer_interval=25,
        validation__eval_timesteps=4,
    )  # fmt: skip
    compiled, executor = [], api._cell_graph_executor
    original = executor.compile

    def counting(cell, *arguments, **settings):
        phase, new = original(cell, *arguments, **settings)
        compiled.extend([type(cell).__name__] * new)
        return phase, new

    executor.compile = counting
    try:
        run = start(config, network, parts.batch_of, held_out=held_out, draw=draw, sides=(8, 12, 16))
        run.go()
    finally:
        del executor.compile
    return run, compiled, drawn


def test_three_picture_sizes_are_three_compilations(eventful):
    _, compiled, _ = eventful
    assert compiled.count("TrainStep") == 3
    assert compiled.count("_Loss") == 1
    assert compiled.count("SmallUNet") == 1


def test_every_step_is_one_line_of_the_metrics(eventful):
    run, _, _ = eventful
    records = read(run.folder.metrics)
    assert [record["step"] for record in records] == list(range(1, 51))
    needed = {"loss", "raw_loss", "lr", "grad_norm", "images_per_second", "seconds", "data_seconds", "tflops", "mfu"}
    assert all(needed <= set(record) for record in records)
    assert [record["step"] for record in records if "compile_seconds" in record] == [1, 2, 3]
    assert [record["step"] for record in records if "eval_loss" in record] == [20, 40, 50]
    scores = {record["step"]: record["clip_score_mean"] for record in records if "clip_score_mean" in record}
    assert scores == {25: 22.0, 50: 23.0}
    # Steps between two fetches share their mean time; nothing else waits for the device.
    compiles, looks, logs = {1, 2, 3}, {20, 25, 40, 50}, set(range(7, 51, 7))
    saves = {step for step in range(1, 51) if checkpoint_due(run.config.train, step, samples=2)}
    times = {record["step"]: record["seconds"] for record in records}
    changes = {step - 1 for step in range(2, 51) if times[step] != times[step - 1]}
    assert changes <= compiles | looks | logs | saves


def test_evaluations_and_pictures_come_when_due_and_differ(eventful):
    run, _, drawn = eventful
    evaluations = read(run.folder.evaluations)
    assert [record["step"] for record in evaluations] == [0, 20, 40, 50]
    assert all(record["timesteps"] == [999, 749, 499, 249] for record in evaluations)
    assert len({record["eval_loss"] for record in evaluations}) == 4
    assert [name for name, _ in drawn] == ["step_0", "step_25", "step_50"]
    assert (run.folder.path / "plots" / "eval_loss.png").exists()


def test_checkpoints_by_samples_are_rotated(eventful):
    run, _, _ = eventful
    assert run.folder.saved_steps() == [45, 50]  # 2 samples a step: 90 is a multiple of 9, 99 is passed in step 50
    names = {path.name for path in (run.folder.path / "weights").iterdir()}
    assert names == {"unet_45.ckpt", "unet_50.ckpt", "unet_ema_45.ckpt", "unet_ema_50.ckpt"}


def test_looking_on_changes_nothing(uninterrupted, small_unet, make_batch, tmp_path):
    """A run that evaluates, draws and fetches at other times ends with the same bits."""
    network = small_unet()
    inputs = [Tensor(np.ones(shape, np.float32)) for shape in ((1, 4, 8, 8), (1,), (1, 7, 6), (1, 4 + 6 * 256))]
    settings = {"validation__eval_interval": 3, "validation__infer_interval": 2, "validation__eval_timesteps": 3}
    watched = start(
        configuration(tmp_path / "watched", STEPS, train__log_interval=4, **settings),
        network,
        make_batch,
        held_out=[make_batch(2, seed=99)],
        draw=lambda folder: {"drawn": float(network(*inputs).asnumpy().sum())},
    )
    watched.go()
    assert_same_end(uninterrupted, watched.folder.path)


@pytest.mark.parametrize(("ema", "looked_at"), [(True, "unet_ema"), (False, "unet")])
def test_what_is_looked_at_is_the_average_unless_the_weights_are_asked_for(
    ema, looked_at, small_unet, make_batch, tmp_path
):
    network, seen = small_unet(), {}

    def draw(folder: Path) -> dict[str, float]:
        seen[folder.name] = network.inward.asnumpy().copy()
        return {}

    settings = {"validation__infer_interval": 2, "train__save_ckpt_interval": 2, "validation__ema": ema}
    run = start(configuration(tmp_path / "run", 4, **settings), network, make_batch, draw=draw)
    run.go()
    for step in (2, 4):
        with open_weights(run.folder.path / "weights" / f"{looked_at}_{step}.ckpt") as weights:
            np.testing.assert_array_equal(seen[f"step_{step}"], weights.read(network.inward.name))
        assert np.abs(network.inward.asnumpy() - run.parts.ema.state[0].asnumpy()).max() > 1e-4  # they differ


def test_the_loss_scale_is_resumed_to_the_bit(small_unet, make_batch, tmp_path):
    """Overflows before and after the interruption, weights in float16: everything ends as if there had been none."""
    settings = {"launch__precision": "fp16", "launch__param_fp16": True, "launch__loss_scale_window": 3}
    settings |= {"launch__init_loss_scale": 2.0**21, "optim__use_ema": True, "train__save_ckpt_interval": 5}
    half = {"dtype": ms.float16, "weights": ms.float16}
    whole = start(configuration(tmp_path / "whole", STEPS, **settings), small_unet(**half), make_batch)
    whole.go()
    records = read(whole.folder.metrics)
    skipped = [record["skipped_steps"] for record in records]
    assert 0 < skipped[4] < skipped[-1] < STEPS
    assert len({record["loss_scale"] for record in records}) > 2
    assert [record["grad_norm"] is None for record in records] == list(np.diff([0, *skipped]) > 0)

    parted = tmp_path / "parted"
    shutil.copytree(whole.folder.path, parted)
    resumed = configuration(parted, STEPS, **settings, train__resume=str(parted / "state" / "step_5"))
    start(resumed, small_unet(seed=1, **half), make_batch).go()
    assert_same_end(whole.folder.path, parted)
    assert [r["loss_scale"] for r in read(parted / "metrics.jsonl")] == [r["loss_scale"] for r in records]
    with open_weights(parted / "weights" / f"unet_{STEPS}.ckpt") as weights:
        assert {weights.dtype(name) for name in weights.names()} == {"F16"}
    with open_weights(parted / "weights" / f"unet_ema_{STEPS}.ckpt") as averages:
        assert {averages.dtype(name) for name in averages.names()} == {"F32"}


def test_checkpoints_by_samples_fire_when_a_multiple_is_crossed():
    train = configuration(Path("x"), STEPS, train__checkpoint_every=100, train__save_ckpt_interval=1000).train
    assert [step for step in range(1, 30) if checkpoint_due(train, step, samples=12)] == [9, 17, 25]
    assert [step for step in range(1, 4) if checkpoint_due(train, step, samples=256)] == [1, 2, 3]
    train.checkpoint_every = None
    assert [step for step in range(1, 3001) if checkpoint_due(train, step, samples=12)] == [1000, 2000, 3000]


@pytest.mark.parametrize("log_interval", [1, 4])
def test_not_a_number_stops_with_the_step_named_and_saves(small_unet, make_batch, tmp_path, log_interval):
    config = configuration(tmp_path / "poisoned", STEPS, train__log_interval=log_interval)
    poisoned = start(config, small_unet(), make_batch, {3: "nan"})
    told = r"step 3: loss nan.* 5 of 5 gradients not finite, the first that of model\.\w+\.weight.*--resume latest"
    with pytest.raises(SuiteError, match=told):
        poisoned.go()
    progress = json.loads(next(poisoned.folder.path.glob("state/*/state.json")).read_text())
    assert progress["step"] == poisoned.done == (3 if log_interval == 1 else 4)
    records = read(poisoned.folder.metrics)
    assert [record["loss"] is None for record in records] == [step == 3 for step in range(1, poisoned.done + 1)]


def test_data_that_fails_saves_the_steps_before(small_unet, make_batch, tmp_path):
    failed = start(configuration(tmp_path / "gone", STEPS), small_unet(), make_batch, {3: "gone"})
    with pytest.raises(SuiteError, match=r"a.png cannot be used.*; step 2 is saved, go on with --resume latest"):
        failed.go()
    assert latest(failed.folder.path) == "step_2"


def test_a_run_is_not_overwritten(uninterrupted, small_unet, make_batch):
    with pytest.raises(SuiteError, match=r"--resume latest"):
        start(configuration(uninterrupted, STEPS), small_unet(), make_batch)


def test_resuming_what_is_not_there_is_told(small_unet, make_batch, tmp_path):
    with pytest.raises(UsageError, match="no run to resume"):
        start(configuration(tmp_path / "none", STEPS, train__resume="latest"), small_unet(), make_batch)


def test_a_state_that_is_gone_names_the_one_before(uninterrupted, small_unet, make_batch, tmp_path):
    folder = tmp_path / "lost"
    shutil.copytree(uninterrupted, folder)
    shutil.rmtree(folder / "state" / "step_10")
    with pytest.raises(SuiteError, match=r"step_10 is no saved state of a run: take --resume .*step_8$"):
        start(configuration(folder, STEPS, train__resume="latest"), small_unet(), make_batch)


@pytest.mark.parametrize(
    ("damaged", "how", "told"),
    [
        ("state/step_10/state.json", "cut", "is damaged"),
        ("state/step_10/state.json", "edited", "was changed after it was written"),
        ("state/step_10/optimizer.ckpt", "cut", "is damaged: it has"),
        ("state/step_10/optimizer.ckpt", "removed", "is missing"),
        ("weights/unet_10.ckpt", "removed", "is missing"),
        ("weights/unet_ema_10.ckpt", "cut", "is damaged: it has"),
        ("weights/unet_10.ckpt", "scrambled", "unet_10.ckpt"),
    ],
)
def test_a_damaged_state_names_the_file_and_an_older_state(
    uninterrupted, small_unet, make_batch, tmp_path, damaged, how, told
):
    folder = tmp_path / "damaged"
    shutil.copytree(uninterrupted, folder)
    file = folder / damaged
    content = file.read_bytes()
    if how == "removed":
        file.unlink()
    elif how == "scrambled":
        file.write_bytes(b"\xff" * len(content))
    else:
        file.write_bytes(content[:-20] if how == "cut" else content.replace(b'"step": 10', b'"step": 9'))
    with pytest.raises(SuiteError) as error:
        start(configuration(folder, STEPS + 2, train__resume="latest"), small_unet(), make_batch)
    assert str(file) in str(error.value)
    assert told in str(error.value)
    assert str(error.value).endswith(f"; take an older state: --resume {folder / 'state' / 'step_8'}")
    older = configuration(folder, STEPS + 2, train__resume=str(folder / "state" / "step_8"))
    assert start(older, small_unet(), make_batch).done == 8


def test_another_configuration_is_no_damage(uninterrupted, small_unet, make_batch):
    config = configuration(uninterrupted, STEPS + 2, train__resume="latest", train__seed=7)
    with pytest.raises(SuiteError, match="the run has seed 42: resume it with --seed 42"):
        start(config, small_unet(), make_batch)


def test_rotation_counts_from_the_step_just_saved(uninterrupted, tmp_path):
    """After resuming from an earlier state those after it are of steps taken back."""
    from gm.training.run_folder import RunFolder

    shutil.copytree(uninterrupted, tmp_path / "back")
    folder = RunFolder(tmp_path / "back")
    assert folder.saved_steps() == [4, 8, 10]
    folder.keep_newest(2, step=8)
    assert folder.saved_steps() == [4, 8]
