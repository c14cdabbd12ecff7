"""Pictures of a network in training: of its weights at that moment, always the same for the same weights."""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

from gm.config import Config
from gm.config.sections.data import DatasetConfig
from gm.errors import SuiteError
from gm.models.architecture import TINY_SDXL
from gm.models.build import build_unet
from gm.sampling.preview import Preview
from gm.weights.load import write_parameters


@pytest.fixture
def config(tiny_checkpoint):
    config = Config()
    config.model.weight, config.model.tokenizer = str(tiny_checkpoint), "demo/tiny/tokenizer"
    config.validation.infer_during_train = True
    config.sample.prompt, config.sample.num_images, config.sample.batch_size = "a red circle", 2, 2
    config.sample.height = config.sample.width = 64
    config.sample.sample_step, config.sample.guidance_scale = 2, 1.0
    return config


@pytest.mark.slow
def test_pictures_follow_the_weights_and_nothing_is_compiled_twice(config, tmp_path):
    ms.set_context(mode=ms.GRAPH_MODE)
    unet = build_unet(TINY_SDXL.unet, seed=0)
    unet.set_train()
    drawer = Preview(config, unet)
    first = [parameter.asnumpy().copy() for parameter in unet.get_parameters()]
    networks = drawer._alone.networks

    def draw(name: str) -> dict[str, bytes]:
        drawer(tmp_path / name)
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    before = draw("step_0")
    assert len(before) == 4  # two pictures, the contact sheet, the manifest
    assert {"contact_sheet.png", "manifest.json"} < set(before)
    compiled = [len(cell.compile_cache) for cell in (networks._guided[1], networks._decoder)]
    assert compiled == [1, 1]
    assert draw("again") == before
    last = unet.trainable_params()[-1]
    last.set_data(last + 0.5)
    assert draw("step_1") != before
    last.set_data(ms.Tensor(first[-1]))
    assert draw("step_2") == before
    assert [len(cell.compile_cache) for cell in (networks._guided[1], networks._decoder)] == compiled
    for parameter, value in zip(unet.get_parameters(), first):
        np.testing.assert_array_equal(parameter.asnumpy(), value)


def test_weights_without_an_autoencoder_are_refused_at_the_start(config, tmp_path):
    unet = build_unet(TINY_SDXL.unet)
    config.model.weight = str(tmp_path / "unet.ckpt")
    write_parameters(config.model.weight, unet)
    with pytest.raises(SuiteError, match="has no autoencoder"):
        Preview(config, unet)


@pytest.fixture
def datasets(config, fake_networks, monkeypatch, tmp_path):
    """A second-stage expert in training on three pictures, with networks that are arithmetic; gives these."""

    class Networks(fake_networks):
        def forget_text_encoders(self):
            """They are not needed again."""

    networks = Networks()
    monkeypatch.setattr("gm.sampling.preview.load_networks", lambda path, unet: networks)
    for index in range(3):
        path = tmp_path / "set" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((64, 96, 3), 100 * index, np.uint8)).save(path)
        path.with_suffix(".txt").write_text(f"{index}a\n{index}b\n")
    config.data.path, config.validation.infer_during_train = str(path.parent), False
    config.validation.using_datasets, config.validation.num_eval_images = True, 2
    config.diffusion.prediction_type, config.diffusion.rescale_betas_zero_snr = "v_prediction", True
    config.diffusion.refiner_training, config.diffusion.refiner_training_strength = True, 0.35
    config.sample.timestep_spacing, config.sample.sample_step = "trailing", 20
    return networks


def test_training_pictures_are_drawn_anew_at_the_second_stages_timesteps(config, datasets, tmp_path):
    draw = Preview(config, None)
    assert draw(tmp_path / "out") == []
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "out" / "datasets").iterdir()}
    assert set(drawn) == {"000.png", "001.png", "contact_sheet.png"}
    assert datasets.timesteps == [349, 299, 249, 199, 149, 99, 49] * 2
    assert all(condition[0].shape[0] == 1 for condition in datasets.conditions)
    draw(tmp_path / "again")
    assert {path.name: path.read_bytes() for path in (tmp_path / "again" / "datasets").iterdir()} == drawn


def test_how_far_they_are_noised_may_be_said(config, datasets, tmp_path):
    config.validation.strength = 0.1
    Preview(config, None)(tmp_path / "out")
    assert datasets.timesteps == [99, 49] * 2


def test_a_training_picture_is_framed_as_in_training_and_spread_over_the_folder(config, datasets):
    shown = [(wish.request.prompt, picture) for wish, picture in Preview(config, None)._anew]
    assert [prompt for prompt, _ in shown] == ["0a", "1a"]
    assert [picture.size for _, picture in shown] == [(64, 64)] * 2
    config.validation.num_eval_images = 100
    assert len(Preview(config, None)._anew) == 3
    config.data.datasets = (DatasetConfig(path=config.data.path), DatasetConfig(path=config.data.path, repeats=2.0))
    config.validation.num_eval_images = 1  # of each
    assert [wish.request.seed for wish, _ in Preview(config, None)._anew] == [42, 43]
    Path(config.data.path, "1.png").write_bytes(b"no picture")
    with pytest.raises(SuiteError, match=r"1\.png"):
        Preview(config, None)


@pytest.fixture
def pair(config, fake_networks, monkeypatch):
    """An expert in training and the other one, with networks that are arithmetic; gives both."""

    class Networks(fake_networks):
        has_text_encoders = True

        def forget_text_encoders(self):
            self.has_text_encoders = False

    trained, other = Networks(), Networks()
    monkeypatch.setattr("gm.sampling.preview.load_networks", lambda path, unet: trained)
    monkeypatch.setattr("gm.sampling.preview.load_second_stage", lambda path, first: other)
    config.validation.other_stage_weight = "other.ckpt"
    config.diffusion.prediction_type, config.diffusion.rescale_betas_zero_snr = "v_prediction", True
    config.diffusion.refiner_training, config.diffusion.refiner_training_strength = True, 0.35
    config.sample.timestep_spacing, config.sample.sample_step, config.sample.num_images = "trailing", 20, 1
    return trained, other


EVERY = list(range(999, 0, -50))
NOISY, CLEAN = [t for t in EVERY if t >= 350], [t for t in EVERY if t < 350]


def test_the_first_expert_draws_alone_and_with_the_second(config, pair, tmp_path):
    config.diffusion.refiner_training_invert_schedule = True
    (shown,) = Preview(config, None)(tmp_path)
    trained, other = pair
    assert trained.timesteps == EVERY + NOISY
    assert other.timesteps == CLEAN
    assert (shown.name, shown.prompt) == ("both/000_seed42_a-red-circle.png", "a red circle")
    with Image.open(tmp_path / shown.name) as both, Image.open(tmp_path / shown.name.removeprefix("both/")) as alone:
        np.testing.assert_array_equal(np.asarray(both), np.asarray(shown.picture))
        assert alone.text["prompt"] == both.text["prompt"]
    assert not other.has_text_encoders  # they share the text states of the trained one


def test_the_second_expert_draws_prompts_only_after_the_first(config, pair, tmp_path):
    Preview(config, None)(tmp_path)
    trained, other = pair
    assert trained.timesteps == CLEAN
    assert other.timesteps == NOISY
    assert [path.name for path in tmp_path.iterdir()] == ["both"]
