"""The evaluation loss of a checkpoint is that of the UNet named, on the pictures named."""

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

from gm.config import Config
from gm.evaluation.eval_loss import evaluate
from gm.training.assemble import load_unet
from gm.weights.load import write_parameters


@pytest.mark.slow
def test_a_checkpoint_of_a_run_is_measured_in_place_of_the_whole_models_unet(tmp_path):
    ms.set_context(mode=ms.GRAPH_MODE)
    config = Config()
    config.model.weight, config.model.tokenizer = "demo/tiny/tiny_sdxl.safetensors", "demo/tiny/tokenizer"
    config.data.resolution, config.data.per_batch_size = 64, 2
    config.validation.eval_data_path, config.validation.eval_timesteps = str(tmp_path / "pictures"), 3
    for index in range(3):
        path = tmp_path / "pictures" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((64, 64, 3), 60 * index, np.uint8)).save(path)
        path.with_suffix(".txt").write_text("a red circle")
    _, unet = load_unet(config)
    for parameter in list(unet.get_parameters())[-2:]:  # the last convolution: it then predicts 0
        parameter.set_data(ms.Tensor(np.zeros(parameter.shape, np.float32)))
    write_parameters(tmp_path / "unet_1.ckpt", unet)

    predicts_nothing = evaluate(config, tmp_path / "unet_1.ckpt")
    # The error is then the noise itself, the same at every timestep: about 1.
    np.testing.assert_allclose(predicts_nothing.losses, predicts_nothing.losses[0], rtol=1e-5)
    assert abs(predicts_nothing.mean - 1) < 0.15
