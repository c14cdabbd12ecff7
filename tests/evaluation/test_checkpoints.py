"""Which checkpoints are meant, in which order and under which names; and what is no checkpoint to evaluate."""

import numpy as np
import pytest

from gm.errors import SuiteError
from gm.evaluation.checkpoints import check, find
from gm.models.architecture import AUTOENCODER, TINY_SDXL
from gm.weights.ckpt import save_ckpt
from gm.weights.keys import expected_shapes

WHOLE = "demo/tiny/tiny_sdxl.safetensors"


def test_a_runs_checkpoints_are_in_the_order_of_their_steps_averages_last(tmp_path):
    weights = tmp_path / "run" / "weights"
    weights.mkdir(parents=True)
    for name in ("unet_1000.ckpt", "unet_ema_500.ckpt", "unet_500.ckpt", "unet_20.ckpt", ".unet_9.ckpt.12.tmp"):
        (weights / name).touch()
    found = find([tmp_path / "run"])
    assert [checkpoint.label for checkpoint in found] == ["unet_20", "unet_500", "unet_1000", "unet_ema_500"]
    assert found[0].path == weights / "unet_20.ckpt"


def test_files_of_the_same_name_are_told_apart_and_nothing_is_taken_twice(tmp_path):
    for run in ("a", "b"):
        (tmp_path / run / "weights").mkdir(parents=True)
        (tmp_path / run / "weights" / "unet_5.ckpt").touch()
    (tmp_path / "whole.v1.safetensors").touch()
    named = [
        tmp_path / "a",
        tmp_path / "b" / "weights" / "unet_5.ckpt",
        tmp_path / "a",
        tmp_path / "whole.v1.safetensors",
    ]
    assert [checkpoint.label for checkpoint in find(named)] == ["a/unet_5", "b/unet_5", "whole.v1"]


def test_nothing_to_find_is_told(tmp_path):
    with pytest.raises(SuiteError, match="no such checkpoint"):
        find([tmp_path / "none"])
    (tmp_path / "run" / "weights").mkdir(parents=True)
    with pytest.raises(SuiteError, match=r"run has no weights/unet_N\.ckpt yet"):
        find([tmp_path / "run"])


def test_what_is_no_checkpoint_is_told_before_anything_is_built(tmp_path, write_random_model, families):
    (tmp_path / "text.ckpt").write_text("no weights " * 50)
    with pytest.raises(SuiteError, match=r"text\.ckpt: this is not a MindSpore \.ckpt"):
        check(find([WHOLE, tmp_path / "text.ckpt"]), WHOLE)
    shapes = {name: shape for name, shape in expected_shapes(TINY_SDXL).items() if name.startswith(AUTOENCODER)}
    save_ckpt(
        tmp_path / "vae.ckpt", ((name, shape, "F32", np.zeros(shape, np.float32)) for name, shape in shapes.items())
    )
    with pytest.raises(SuiteError, match=r"vae\.ckpt has no UNet to evaluate: it is .* with an autoencoder"):
        check(find([tmp_path / "vae.ckpt"]), WHOLE)
    other = write_random_model(tmp_path / "refiner.ckpt", families["refiner"])
    with pytest.raises(SuiteError, match=r"refiner\.ckpt has another UNet than demo.*; name checkpoints of one model$"):
        check(find([WHOLE, other]), WHOLE)
    check(find([WHOLE]), WHOLE)
