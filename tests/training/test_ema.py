"""The average follows the weights by the warmed-up decay."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, ops

from gm.models import layers
from gm.training.ema import EMA


def weights_of(rng) -> list[Parameter]:
    return [Parameter(Tensor(rng.standard_normal(shape), ms.float32), name=f"w{shape[0]}") for shape in ((3, 2), (4,))]


def move(weight: Parameter, rng) -> None:
    # Not set_data: a compiled branch goes on with the memory that was the weight's at its first run.
    ops.assign(weight, Tensor(rng.standard_normal(weight.shape), ms.float32))


@pytest.mark.parametrize("kernels", [layers.KERNELS, {}], ids=["kernel", "operators"])
@pytest.mark.parametrize(("decay", "interval"), [(0.5, 1), (0.9999, 1), (0.9999, 4)])
def test_average_and_its_warm_up(decay, interval, kernels, monkeypatch):
    monkeypatch.setattr(layers, "KERNELS", kernels)
    rng = np.random.default_rng(0)
    weights = weights_of(rng)
    ema = EMA(weights, decay, interval)
    assert [average.name for average in ema.state] == ["ema.w3", "ema.w4"]
    expected = [weight.asnumpy().astype(np.float64) for weight in weights]
    for update in range(1, 31):
        for weight in weights:
            move(weight, rng)
        ema(Tensor(float(update), ms.float32))
        if update % interval == 0:
            moves = update // interval - 1
            rate = min(decay, (1 + moves) / (10 + moves))
            expected = [rate * mean + (1 - rate) * weight.asnumpy() for mean, weight in zip(expected, weights)]
        for average, mean in zip(ema.state, expected):
            np.testing.assert_allclose(average.asnumpy(), mean, rtol=1e-5, atol=1e-6)


def test_masters_are_averaged_in_place_of_their_roundings():
    masters = weights_of(np.random.default_rng(0))
    weights = [Parameter(master.astype(ms.float16), name=master.name) for master in masters]
    ema = EMA(weights, 0.9, masters=masters)
    assert [average.name for average in ema.state] == ["ema.w3", "ema.w4"]
    ema(Tensor(1.0, ms.float32))
    for average, master in zip(ema.state, masters):
        assert average.dtype == ms.float32
        np.testing.assert_allclose(average.asnumpy(), master.asnumpy(), rtol=1e-6)


@pytest.mark.reference
def test_equals_diffusers():
    """But for the first decay, 0 there and 1/10 here: 30 updates later nothing is left of the start."""
    torch = pytest.importorskip("torch")
    training_utils = pytest.importorskip("diffusers.training_utils")
    rng = np.random.default_rng(0)
    weights = weights_of(rng)
    theirs = [torch.nn.Parameter(torch.from_numpy(weight.asnumpy().copy())) for weight in weights]
    reference = training_utils.EMAModel(theirs, decay=0.95)
    ema = EMA(weights, 0.95)
    for update in range(1, 31):
        for weight, their in zip(weights, theirs):
            move(weight, rng)
            their.data = torch.from_numpy(weight.asnumpy().copy())
        ema(Tensor(float(update), ms.float32))
        reference.step(theirs)
    for average, their in zip(ema.state, reference.shadow_params):
        np.testing.assert_allclose(average.asnumpy(), their.numpy(), rtol=1e-5, atol=1e-6)
