"""Pictures of a network in training: of its weights at that moment, always the same for the same weights."""

import mindspore as ms
import numpy as np
import pytest

from gm.config import Config
from gm.errors import SuiteError
from gm.models.architecture import TINY_SDXL
from gm.models.build import build_unet
from gm.sampling.preview import Preview
from gm.weights.load import write_parameters


@pytest.fixture
def config(tiny_checkpoint):
    config = Config()
    config.model.weight, config.model.tokenizer = str(tiny_checkpoint), "demo/tiny/tokenizer"
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
    networks = drawer._pipeline.networks

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
