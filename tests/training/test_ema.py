"""The average follows the weights by the warmed-up decay."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from gm.training.ema import EMA


@pytest.mark.parametrize("decay", [0.5, 0.9999])
def test_average_and_its_warm_up(decay):
    rng = np.random.default_rng(0)
    weights = [
        Parameter(Tensor(rng.standard_normal(shape), ms.float32), name=f"w{shape[0]}") for shape in ((3, 2), (4,))
    ]
    ema = EMA(weights, decay)
    assert [average.name for average in ema.state] == ["ema.w3", "ema.w4"]
    expected = [weight.asnumpy().astype(np.float64) for weight in weights]
    for update in range(30):
        for weight in weights:
            weight.set_data(Tensor(rng.standard_normal(weight.shape), ms.float32))
        ema(Tensor(float(update), ms.float32))
        rate = min(decay, (1 + update) / (10 + update))
        expected = [rate * mean + (1 - rate) * weight.asnumpy() for mean, weight in zip(expected, weights)]
    for average, mean in zip(ema.state, expected):
        np.testing.assert_allclose(average.asnumpy(), mean, rtol=1e-5, atol=1e-6)
