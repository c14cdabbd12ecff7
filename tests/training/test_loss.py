"""The loss body against its formula in numpy."""

import numpy as np
import pytest
from mindspore import Tensor

from gm.training.loss import BATCH_FIELDS, DiffusionLoss, sample_posterior
from gm.training.step import tensors

SCALE = 0.13025


def embed(numbers: np.ndarray) -> np.ndarray:
    """Cosines, then sines, of every number at 128 frequencies, as ``gm.models.conditioner.size_embedding``."""
    frequencies = 10000.0 ** (-np.arange(128) / 128)
    angles = numbers.reshape(-1, 1) * frequencies
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).reshape(len(numbers), -1)


def expected_losses(unet, batch) -> np.ndarray:
    """The plain loss of each sample, in float64."""
    batch = {name: values.astype(np.float64) for name, values in batch.items()}
    column = {name: batch[name].reshape(-1, 1, 1, 1) for name in ("alpha", "sigma", "target_noise", "target_latents")}
    mean, logvar = np.split(batch["moments"], 2, axis=1)
    latents = (mean + np.exp(0.5 * np.clip(logvar, -30, 20)) * batch["posterior_noise"]) * SCALE
    noisy = column["alpha"] * latents + column["sigma"] * batch["noise"]
    target = column["target_noise"] * batch["noise"] + column["target_latents"] * latents
    vector = np.concatenate([batch["pooled"], embed(batch["time_ids"])], axis=1)
    arguments = (noisy, batch["timesteps"], batch["context"], vector)
    prediction = unet(*(Tensor(argument.astype(np.float32)) for argument in arguments)).asnumpy()
    return ((prediction - target) ** 2).mean(axis=(1, 2, 3))


@pytest.mark.parametrize("size", [1, 3])
def test_equals_the_formula(small_unet, make_batch, size):
    unet, batch = small_unet(), make_batch(size)
    assert tuple(batch) == BATCH_FIELDS
    loss, raw_loss = (float(value.asnumpy()) for value in DiffusionLoss(unet, SCALE)(*tensors(batch)))
    losses = expected_losses(unet, batch)
    assert raw_loss == pytest.approx(losses.mean(), rel=1e-5)
    assert loss == pytest.approx((losses * batch["weight"]).mean(), rel=1e-5)


def test_log_variance_is_clipped():
    moments = np.zeros((1, 2, 1, 1), np.float32)
    moments[:, 1] = 1000.0
    drawn = sample_posterior(Tensor(moments), Tensor(np.ones((1, 1, 1, 1), np.float32)))
    assert float(drawn.asnumpy().item()) == pytest.approx(np.exp(10.0), rel=1e-5)


def test_a_network_without_size_numbers_gets_no_vector(make_batch, small_unet):
    from mindspore import nn

    class Unconditional(nn.Cell):
        def __init__(self, inner):
            super().__init__(auto_prefix=False)
            self.inward = inner.inward

        def construct(self, latents, timesteps, context, vector=None):
            if vector is None:
                return latents
            return 0 * latents

    batch = make_batch(2)
    with_vector, without = (
        float(DiffusionLoss(Unconditional(small_unet()), SCALE, asked)(*tensors(batch))[1].asnumpy())
        for asked in (True, False)
    )
    assert with_vector != without
