"""Lion is the paper's, line by line."""

import mindspore as ms
import numpy as np
import pytest

from gm.models import layers
from gm.training.lion import Lion
from tests.training.optimizing import history, parameters, run


@pytest.mark.parametrize("kernels", [layers.KERNELS, {}], ids=["kernel", "operators"])
@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
@pytest.mark.parametrize(("beta1", "beta2", "decay"), [(0.9, 0.99, 0.1), (0.95, 0.98, 0.0)])
def test_equals_float64(mode, kernels, monkeypatch, beta1, beta2, decay):
    ms.set_context(mode=mode)
    monkeypatch.setattr(layers, "KERNELS", kernels)
    trained = parameters()
    values = [parameter.asnumpy().astype(np.float64) for parameter in trained]
    moments = [np.zeros_like(value) for value in values]
    for lr, gradients in history():
        for value, m, gradient in zip(values, moments, gradients):
            direction = np.sign(beta1 * m + (1 - beta1) * gradient)
            value -= lr * (direction + (decay * value if value.ndim > 1 else 0.0))
            m[...] = beta2 * m + (1 - beta2) * gradient
    optimizer = Lion(trained, beta1, beta2, decay)
    run(optimizer)
    for parameter, value, m, moment in zip(trained, values, optimizer.lion_m, moments):
        np.testing.assert_allclose(parameter.asnumpy(), value, rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(m.asnumpy(), moment, rtol=1e-4, atol=1e-6 * np.abs(moment).max())


def test_every_step_is_as_long_as_the_learning_rate():
    trained = parameters()
    before = [parameter.asnumpy().copy() for parameter in trained]
    run(Lion(trained, weight_decay=0.0), slice(1))
    for parameter, value in zip(trained, before):
        np.testing.assert_allclose(np.abs(parameter.asnumpy() - value), history()[0][0], atol=3e-7)
