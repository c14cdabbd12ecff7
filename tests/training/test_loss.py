"""The loss body against its formula in numpy."""

import numpy as np
import pytest
from mindspore import Tensor, ops

from gm.training.loss import BATCH_FIELDS, DiffusionLoss, robust_square, sample_posterior
from gm.training.step import tensors

SCALE = 0.13025


def embed(numbers: np.ndarray) -> np.ndarray:
    """Cosines, then sines, of every number at 128 frequencies, as ``gm.models.conditioner.size_embedding``."""
    frequencies = 10000.0 ** (-np.arange(128) / 128)
    angles = numbers.reshape(-1, 1) * frequencies
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).reshape(len(numbers), -1)


def errors(unet, batch) -> np.ndarray:
    """Prediction less target, in float64."""
    batch = {name: values.astype(np.float64) for name, values in batch.items()}
    column = {name: batch[name].reshape(-1, 1, 1, 1) for name in ("alpha", "sigma", "target_noise", "target_latents")}
    mean, logvar = np.split(batch["moments"], 2, axis=1)
    latents = (mean + np.exp(0.5 * np.clip(logvar, -30, 20)) * batch["posterior_noise"]) * SCALE
    noisy = column["alpha"] * latents + column["sigma"] * batch["input_noise"]
    target = column["target_noise"] * batch["noise"] + column["target_latents"] * latents
    vector = np.concatenate([batch["pooled"], embed(batch["time_ids"])], axis=1)
    arguments = (noisy, batch["timesteps"], batch["context"], vector)
    prediction = unet(*(Tensor(argument.astype(np.float32)) for argument in arguments)).asnumpy()
    return prediction - target


def expected_losses(unet, batch) -> np.ndarray:
    """The plain loss of each sample."""
    return (errors(unet, batch) ** 2).mean(axis=(1, 2, 3))


@pytest.mark.parametrize("size", [1, 3])
def test_equals_the_formula(small_unet, make_batch, size):
    unet, batch = small_unet(), make_batch(size)
    assert tuple(batch) == BATCH_FIELDS
    loss, raw_loss = (float(value.asnumpy()) for value in DiffusionLoss(unet, SCALE)(*tensors(batch)))
    losses = expected_losses(unet, batch)
    assert raw_loss == pytest.approx(losses.mean(), rel=1e-5)
    assert loss == pytest.approx((losses * batch["weight"]).mean(), rel=1e-5)


def test_every_objective_is_one_graph(small_unet, make_batch):
    """Huber loss, its limit and perturbed input differ in what the batch holds, not in what is compiled."""
    unet = small_unet()
    network = DiffusionLoss(unet, SCALE)
    for c in (None, 0.1, np.array([0.01, 1.0, 30.0])):
        batch = make_batch(3, seed=1)
        batch["input_noise"] = batch["noise"] + np.float32(0.1) * make_batch(3, seed=2)["noise"]
        if c is not None:
            batch["inverse_huber_c"] = (np.ones(3) / c).astype(np.float32)
        loss, raw_loss = (float(value.asnumpy()) for value in network(*tensors(batch)))
        error = errors(unet, batch)
        losses = (error**2).mean(axis=(1, 2, 3))
        assert raw_loss == pytest.approx(losses.mean(), rel=1e-5)
        if c is not None:
            c = np.reshape(c, (-1, 1, 1, 1))
            losses = (2 * c * (np.sqrt(error**2 + c**2) - c)).mean(axis=(1, 2, 3))
        assert loss == pytest.approx((losses * batch["weight"]).mean(), rel=1e-5)
    assert len(network.compile_cache) == 1


def test_robust_square_and_its_slope():
    """Exactly the square where 1/c is 0; else 2 e / sqrt(1 + (e / c)^2), the slope of the formula."""
    error = np.array([-30.0, -0.3, -1e-4, 0.0, 1e-4, 0.3, 30.0], np.float32)
    of = ops.grad(robust_square)
    for c in (np.inf, 0.1, 5.0):
        inverse = np.float32(1 / c)
        value, slope = (f(Tensor(error), Tensor(inverse)).asnumpy() for f in (robust_square, of))
        np.testing.assert_allclose(slope, 2 * error / np.sqrt(1 + (error * inverse) ** 2), rtol=1e-5)
        if c == np.inf:
            np.testing.assert_array_equal(value, error * error)
            np.testing.assert_array_equal(slope, 2 * error)
        else:
            wide = error.astype(np.float64)
            np.testing.assert_allclose(value, 2 * c * (np.sqrt(wide**2 + c**2) - c), rtol=1e-4)


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
