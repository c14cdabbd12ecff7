"""Caching and training of models with one text encoder: the first loss is that of diffusers' UNet on the same batch."""

import mindspore as ms
import numpy as np
import pytest

from gm.config import Config
from gm.data import cache
from gm.data.batches import FIELDS, Batches
from gm.data.datasets import scan
from gm.data.encoders import NetworkEncoders
from gm.data.tokens import Tokenizers
from gm.errors import UsageError
from gm.training import metrics
from gm.training.loop import train
from gm.weights.folder import ckpt_to_diffusers

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

pytestmark = [pytest.mark.reference, pytest.mark.slow]


@pytest.fixture
def config(picture_config) -> Config:
    """Two cached steps."""
    config = picture_config(64, 80)
    config.data.aesthetic_score = 7.0
    config.cache.latent = config.cache.text_embedding = True
    config.train.max_train_steps = 2
    return config


def reference_loss(unet, batch: dict[str, np.ndarray], scale_factor: float) -> float:
    given = {name: torch.from_numpy(values) for name, values in batch.items()}
    mean, logvar = given["moments"].chunk(2, dim=1)
    latents = (mean + torch.exp(0.5 * logvar) * given["posterior_noise"]) * scale_factor
    noise = given["noise"]
    noisy = latents * given["alpha"].view(-1, 1, 1, 1) + noise * given["sigma"].view(-1, 1, 1, 1)
    added = {"text_embeds": given["pooled"], "time_ids": given["time_ids"]}
    with torch.no_grad():
        predicted = unet(noisy, given["timesteps"], given["context"], added_cond_kwargs=added).sample
    return torch.nn.functional.mse_loss(predicted, noise).item()


@pytest.mark.parametrize("family", ["sd-1", "refiner"])
def test_the_first_loss_is_that_of_diffusers(tmp_path, config, families, write_random_model, family):
    ms.set_context(mode=ms.GRAPH_MODE)
    architecture = families[family]
    weight = write_random_model(tmp_path / "model.ckpt", architecture)
    encoders, tokenizers = NetworkEncoders(config), Tokenizers.of(config.model)
    cache.build(config, encoders, tokenizers, progress=False)
    with Batches.of(config) as batches:
        batch = next(batches)
    with Batches(
        config, scan(config.data), None, encoders, tokenizers, size_numbers=architecture.size_numbers
    ) as online:
        uncached = next(online)
    for name in FIELDS:
        np.testing.assert_allclose(uncached[name], batch[name], rtol=1e-4, atol=1e-5, err_msg=name)
    if family == "refiner":
        np.testing.assert_array_equal(batch["time_ids"], [[80, 64, 8, 0, 7.0]] * 2)
        assert batch["pooled"].shape == (2, 64)
    else:
        assert batch["pooled"].shape == batch["time_ids"].shape == (2, 0)

    train(config)
    losses = [line["loss"] for line in metrics.read(tmp_path / "run/metrics.jsonl")]
    assert len(losses) == 2
    ckpt_to_diffusers(weight, tmp_path / "folder")
    unet = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "folder/unet").eval()
    expected = reference_loss(unet, batch, architecture.latent_scale)
    assert losses[0] == pytest.approx(expected, rel=1e-4)
    assert (tmp_path / "run/weights/unet_2.ckpt").exists()


def test_a_size_the_unet_cannot_halve_is_told_before_training(tmp_path, config, families, write_random_model):
    write_random_model(tmp_path / "model.ckpt", families["sd-1"])
    config.cache.latent = config.cache.text_embedding = False
    config.data.resolution = 72
    with pytest.raises(UsageError, match=r"trained at 72x72 .* multiples of 16: change --resolution"):
        Batches.of(config)
