"""The evaluation loss: equal to its formula, and a function of the weights alone."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from gm.config import Config
from gm.config.sections.data import DatasetConfig
from gm.data.encoders import Encoders
from gm.diffusion import schedule
from gm.errors import UsageError
from gm.models.architecture import TINY_SDXL
from gm.training.eval_loss import EvalLoss, grid, held_out
from gm.training.loss import DiffusionLoss

SCALE = 0.5


class Half(nn.Cell):
    """Predicts half of the noisy latents plus a thousandth of the timestep."""

    def construct(self, latents: Tensor, timesteps: Tensor, context: Tensor, vector: Tensor) -> Tensor:
        return 0.5 * latents + 0.001 * timesteps.reshape(-1, 1, 1, 1)


class ArithmeticEncoders(Encoders):
    """Moments, context and pooled states by arithmetic."""

    picture_hash = text_hash = "arithmetic"
    architecture = TINY_SDXL

    def __init__(self):
        self.pictures = 0

    def encode_pictures(self, pictures):
        self.pictures += len(pictures)
        means = pictures.reshape(len(pictures), 3, pictures.shape[2] // 8, 8, -1, 8).mean((3, 5))
        return np.concatenate([means, means[:, :1], 0 * means, 0 * means[:, :1]], axis=1).astype(np.float32)

    def encode_text(self, ids_1, ids_2):
        context = np.repeat(ids_1[:, :, None], 6, axis=2).astype(np.float32)
        return context, context.mean(1)[:, :4]


class LengthTokenizers:
    hash = "lengths"

    def encode(self, texts):
        ids = np.array([[len(text)] * 77 for text in texts], np.int32)
        return ids, ids


@pytest.fixture
def config(tmp_path) -> Config:
    from PIL import Image

    root = tmp_path / "held_out"
    root.mkdir()
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 64, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{index}.png")
        (root / f"{index}.txt").write_text("x" * index + "y")
    config = Config()
    config.data.resolution, config.data.per_batch_size = 32, 2
    config.cache.path = str(tmp_path / "cache")
    config.validation.eval_data_path, config.validation.num_eval_images = str(root), 5
    config.validation.eval_timesteps = 4
    return config


def batches_of(config: Config) -> list[dict]:
    return held_out(config, ArithmeticEncoders(), LengthTokenizers())


@pytest.fixture(scope="module")
def loss():
    ms.set_context(mode=ms.GRAPH_MODE)
    return DiffusionLoss(Half(), SCALE)


def measure(loss, config: Config, batches: list[dict]):
    return EvalLoss(loss, batches, config.diffusion, grid(config)).measure()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_it_is_the_mean_squared_error_of_every_picture_at_every_timestep(loss, config, prediction_type):
    config.diffusion.prediction_type = prediction_type
    batches = batches_of(config)
    found = measure(loss, config, batches)
    assert list(found.timesteps) == [999, 749, 499, 249]
    abar = schedule.alphas_cumprod(schedule.betas("scaled_linear", 1000, 0.00085, 0.012))
    expected = []
    for timestep in found.timesteps:
        alpha, sigma = np.sqrt(abar[timestep]), np.sqrt(1 - abar[timestep])
        errors = []
        for batch in batches:
            mean, log_variance = np.split(batch["moments"].astype(np.float64), 2, axis=1)
            latents = SCALE * (mean + np.exp(0.5 * log_variance) * batch["posterior_noise"])
            noise = batch["noise"]
            target = {"epsilon": noise, "v_prediction": alpha * noise - sigma * latents, "sample": latents}
            error = 0.5 * (alpha * latents + sigma * noise) + 0.001 * timestep - target[prediction_type]
            errors += [(one**2).mean() for one, weight in zip(error, batch["weight"]) if weight]
        assert len(errors) == 5
        expected.append(np.mean(errors))
    np.testing.assert_allclose(found.losses, expected, rtol=2e-6)
    np.testing.assert_allclose(found.mean, np.mean(expected), rtol=2e-6)
    assert found.record(7) == {
        "step": 7,
        "eval_loss": found.mean,
        "timesteps": [999, 749, 499, 249],
        "losses": list(found.losses),
    }


def test_nothing_of_a_training_changes_it(loss, config):
    """Not its seed, shuffling, dropout, flips, weighting, bias, perturbation, accumulation or batch size."""
    before = measure(loss, config, batches_of(config))
    data, diffusion = config.data, config.diffusion
    config.train.seed, config.optim.gradient_accumulation_steps = 7, 3
    data.random_flip, data.caption_dropout, data.crop, data.shuffle = True, 1.0, "random", True
    data.datasets = (DatasetConfig(path="trained on"),)
    diffusion.snr_gamma, diffusion.noise_offset, diffusion.input_perturbation = 5.0, 0.1, 0.1
    diffusion.timestep_bias_strategy, diffusion.timestep_bias_multiplier = "later", 2.0
    diffusion.loss_type, diffusion.sigma_sampling = "huber", "edm"
    np.testing.assert_array_equal(measure(loss, config, batches_of(config)).losses, before.losses)
    data.per_batch_size = 3
    np.testing.assert_allclose(measure(loss, config, batches_of(config)).losses, before.losses, rtol=1e-6)


def test_from_the_cache_it_is_the_same_and_nothing_is_encoded_twice(loss, config):
    plain = measure(loss, config, batches_of(config))
    config.cache.latent = config.cache.text_embedding = True
    config.cache.dtype = "fp32"
    encoders = ArithmeticEncoders()
    cached = held_out(config, encoders, LengthTokenizers())
    np.testing.assert_array_equal(measure(loss, config, cached).losses, plain.losses)
    encoded = encoders.pictures
    assert encoded > 0
    held_out(config, encoders, LengthTokenizers())
    assert encoders.pictures == encoded


def test_pictures_are_spread_over_the_folder(config):
    config.validation.num_eval_images = 3
    config.data.per_batch_size = 1
    lengths = [batch["context"][0, 0, 0] for batch in batches_of(config)]
    assert lengths == [1, 3, 5]
    config.validation.num_eval_images = 100
    assert len(batches_of(config)) == 6


def test_an_expert_is_evaluated_in_its_own_range(config):
    config.validation.eval_timesteps = 28
    config.diffusion.refiner_training, config.diffusion.refiner_training_strength = True, 0.35
    second = grid(config)
    config.diffusion.refiner_training_invert_schedule = True
    first = grid(config)
    config.diffusion.refiner_training = False
    assert second.max() < 350 <= first.min()
    np.testing.assert_array_equal(np.concatenate([first, second]), grid(config))
    config.validation.eval_timesteps, config.diffusion.refiner_training = 1, True
    config.diffusion.refiner_training_invert_schedule = False
    with pytest.raises(UsageError, match=r"none of 1 --eval_timesteps is in the expert's range 0\.\.349"):
        grid(config)
