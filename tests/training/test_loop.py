"""What a run says before it begins, and that it is so."""

import logging
import re

import numpy as np
import pytest
from PIL import Image

from gm import compilation
from gm.config import Config
from gm.errors import SuiteError, UsageError
from gm.training.loop import train
from gm.training.memory import estimate, weights_of_run
from tests.training.small_run import configuration, start


@pytest.fixture
def config(tmp_path) -> Config:
    """Training of the tiny SDXL on three pictures of two shapes."""
    for index, size in enumerate([(64, 64), (64, 64), (48, 96)]):
        path = tmp_path / "pictures" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((*size, 3), 60, np.uint8)).save(path)
        path.with_suffix(".txt").write_text("a circle")
    config = Config()
    config.model.weight, config.model.tokenizer = "demo/tiny/tiny_sdxl.safetensors", "demo/tiny/tokenizer"
    config.data.path, config.data.resolution, config.data.buckets = str(tmp_path / "pictures"), 64, True
    config.data.per_batch_size, config.train.max_train_steps = 2, 6
    config.train.save_path = str(tmp_path / "runs")
    return config


def test_a_dry_run_says_what_is_to_come_and_leaves_nothing(config, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    config.dry_run, config.optim.use_ema = True, True
    train(config)
    assert not (tmp_path / "runs").exists()
    assert "training 2,675,780 parameters" in caplog.text
    assert "6 steps of 2 samples: 3.0 epochs of 2 steps" in caplog.text
    assert "pictures of 128x32, 64x64: 2 compilations of the step to come" in caplog.text
    found = re.search(
        r"estimated: weights (\d+) MB, gradients (\d+) MB, optimizer (\d+) MB, moving average (\d+) MB, "
        r"frozen networks (\d+) MB, activations (\d+) MB; together (\d+) MB",
        caplog.text,
    )
    numbers = [int(number) for number in found.groups()]
    assert numbers[1] == numbers[3] == numbers[0]
    assert abs(numbers[2] - 2 * numbers[0]) <= 1
    assert abs(sum(numbers[:-1]) - numbers[-1]) <= 3


def test_one_process_is_no_mesh_of_several(config):
    config.parallel.zero_stage, config.parallel.ici_fsdp_parallelism = 3, 4
    with pytest.raises(UsageError, match=r"--ici_fsdp_parallelism 4 .* does not make up 1 devices"):
        train(config)


def test_what_is_saved_has_the_size_that_was_estimated(small_unet, make_batch, tmp_path):
    """And accumulation compiles once more than there are picture sizes, as was told."""
    from gm.models.architecture import TINY_SDXL
    from gm.training.report import compilations

    config = configuration(tmp_path / "sized", 2, optim__gradient_accumulation_steps=2)
    run = start(config, small_unet(), make_batch, sides=(8, 12))
    needs = estimate(config, TINY_SDXL, weights_of_run(run.parts), (96, 96))
    before = len(compilation.done())
    run.go()
    assert compilations(run.parts, 2) == "3 compilations of the step to come"
    assert len(compilation.done()) - before == 3
    files = {"weights": run.folder.weights(2), "moving average": run.folder.weights(2, average=True)}
    files["optimizer"] = run.folder.state(2) / "optimizer.ckpt"
    for name, path in files.items():
        assert needs[name] == pytest.approx(path.stat().st_size, rel=0.02), name
    assert needs["gradients"] == 2 * needs["weights"]


def test_no_pictures_is_told_before_anything_is_written(config, tmp_path):
    config.data.path = str(tmp_path / "nothing")
    with pytest.raises(SuiteError, match="no folder"):
        train(config)
    assert not (tmp_path / "runs").exists()
