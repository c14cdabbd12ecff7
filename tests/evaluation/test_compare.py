"""Checkpoints side by side: each is drawn and measured as if it were alone, and one compilation serves all."""

import json
from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

from gm.config import Config
from gm.errors import SuiteError
from gm.evaluation.checkpoints import Checkpoint, Subject, find
from gm.evaluation.compare import compare, table
from gm.evaluation.run import eval_loss
from gm.training.assemble import load_unet
from gm.training.eval_loss import Evaluation
from gm.weights.load import write_parameters

WHOLE = "demo/tiny/tiny_sdxl.safetensors"


@pytest.fixture
def config(pictures) -> Config:
    config = Config()
    config.model.weight, config.model.tokenizer = WHOLE, "demo/tiny/tokenizer"
    config.data.resolution, config.data.per_batch_size = 64, 2
    config.validation.eval_data_path, config.validation.eval_timesteps = str(pictures), 2
    config.sample.prompt, config.sample.num_images, config.sample.batch_size = "a red circle on grey", 2, 2
    config.sample.height = config.sample.width = 64
    config.sample.sample_step, config.sample.guidance_scale = 1, 1.0
    return config


@pytest.fixture
def blind(config, tmp_path):
    """A run whose UNet predicts nothing: its last convolution is 0."""
    _, unet = load_unet(config)
    for parameter in list(unet.get_parameters())[-2:]:
        parameter.set_data(ms.Tensor(np.zeros(parameter.shape, np.float32)))
    write_parameters(tmp_path / "run" / "weights" / "unet_7.ckpt", unet)
    return tmp_path / "run"


@pytest.mark.slow
def test_each_checkpoint_is_itself_whatever_was_before_it(config, blind, clip_folder, tmp_path):
    ms.set_context(mode=ms.GRAPH_MODE)
    config.validation.clip_weight = str(clip_folder)
    checkpoints = find([WHOLE, blind, WHOLE]) + [Checkpoint("again", find([WHOLE])[0].path)]
    red = {"red": lambda shown, prompts: float(np.mean([np.asarray(picture)[..., 0] for picture in shown])) / 255}
    records = compare(config, checkpoints, tmp_path / "out", red)
    assert [record["label"] for record in records] == ["tiny_sdxl", "unet_7", "again"]
    for name in ("eval_loss", "losses", "clip", "red"):
        assert records[0][name] == records[2][name] != records[1][name]
    # The error of what predicts nothing is the noise itself, the same at every timestep: about 1.
    np.testing.assert_allclose(records[1]["losses"], records[1]["losses"][0], rtol=1e-5)
    assert abs(records[1]["eval_loss"] - 1) < 0.15 < 1 - records[0]["eval_loss"]

    assert records == json.loads((tmp_path / "out" / "compare.json").read_text())["checkpoints"]
    assert table(records, red) in (tmp_path / "out" / "compare.md").read_text()
    first, last = ((tmp_path / "out" / records[index]["pictures"]) for index in (0, 2))
    drawn = sorted(path.name for path in first.glob("*seed*.png"))
    assert len(drawn) == 2
    for name in drawn:
        with Image.open(first / name) as one, Image.open(last / name) as other:
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
            assert json.loads(one.text["settings"])["weight"] == WHOLE
    scored = json.loads((first / "clip_score.json").read_text())
    assert [image["file"] for image in scored["images"]] == drawn
    assert scored["summary"] == records[0]["clip"]
    with Image.open(tmp_path / "out" / "grid.png") as grid, Image.open(tmp_path / "out" / "eval_loss.png"):
        assert grid.width > grid.height  # three checkpoints beside each other, two seeds below


def test_the_tool_measures_every_checkpoint_and_draws_one_picture(config, blind, monkeypatch, tmp_path):
    losses = iter([np.array([0.5, 0.3]), np.array([0.4, 0.1])])
    held = []
    monkeypatch.setattr(Subject, "__init__", lambda self, config: None)
    monkeypatch.setattr(Subject, "hold", lambda self, path: held.append(path))
    measure = SimpleNamespace(measure=lambda: Evaluation(np.array([999, 499]), next(losses)))
    monkeypatch.setattr("gm.evaluation.eval_loss.eval_loss_of", lambda config, subject: measure)
    config.data.path, config.validation.eval_data_path = config.validation.eval_data_path, ""
    config.sample.save_path = str(tmp_path / "out")
    monkeypatch.setattr("gm.evaluation.run.start_device", lambda config: None)
    told = eval_loss(config, [WHOLE, str(blind)])
    assert [line.split() for line in told[1:3]] == [["0.400000", "tiny_sdxl"], ["0.250000", "unet_7"]]
    assert held == [Path(WHOLE), blind / "weights" / "unet_7.ckpt"]
    record = json.loads((tmp_path / "out" / "eval_loss.json").read_text())
    assert record["data_path"] == config.data.path
    assert record["checkpoints"][1]["losses"] == [0.4, 0.1]
    with Image.open(tmp_path / "out" / "eval_loss.png") as picture:
        assert picture.width > picture.height


def test_the_best_of_each_measure_is_bold():
    records = [
        {"label": "unet_1", "file": "a.ckpt", "eval_loss": 0.2, "clip_score": 20.0},
        {"label": "unet_2", "file": "b.ckpt", "eval_loss": 0.1, "clip_score": 19.0},
    ]
    assert table(records).splitlines() == [
        "| checkpoint | evaluation loss (less is better) | CLIP score (more is better) | file |",
        "|---|---|---|---|",
        "| unet_1 | 0.20000 | **20.00** | `a.ckpt` |",
        "| unet_2 | **0.10000** | 19.00 | `b.ckpt` |",
    ]


def test_other_text_encoders_are_refused(config, write_random_model, tmp_path):
    from gm.models.architecture import TINY_SDXL

    other = write_random_model(tmp_path / "other.ckpt", TINY_SDXL)
    with pytest.raises(SuiteError, match="has other text encoders than demo/tiny/tiny_sdxl"):
        Subject(config).hold(other)
