"""AdamW is the paper's, with bias correction, to float32 precision."""

import mindspore as ms
import numpy as np
import pytest

from gm.models import layers
from gm.training.adamw import AdamW
from tests.training.optimizing import history, parameters, run, torch_parameters, torch_run


def float64_adamw(values, beta1, beta2, epsilon, weight_decay):
    """Algorithm 2 of arXiv 1711.05101, line by line, with decay on matrices and kernels."""
    values = [value.astype(np.float64) for value in values]
    firsts, seconds = [np.zeros_like(value) for value in values], [np.zeros_like(value) for value in values]
    for step, (lr, gradients) in enumerate(history(), 1):
        for value, m, v, gradient in zip(values, firsts, seconds, gradients):
            if value.ndim > 1:
                value *= 1 - lr * weight_decay
            m[...] = beta1 * m + (1 - beta1) * gradient
            v[...] = beta2 * v + (1 - beta2) * gradient.astype(np.float64) ** 2
            value -= lr * (m / (1 - beta1**step)) / (np.sqrt(v / (1 - beta2**step)) + epsilon)
    return values


@pytest.mark.parametrize("kernels", [layers.KERNELS, {}], ids=["kernel", "operators"])
@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
@pytest.mark.parametrize(("beta1", "beta2", "epsilon", "decay"), [(0.9, 0.999, 1e-8, 0.1), (0.0, 0.95, 1e-4, 0.0)])
def test_equals_float64(mode, kernels, monkeypatch, beta1, beta2, epsilon, decay):
    ms.set_context(mode=mode)
    monkeypatch.setattr(layers, "KERNELS", kernels)
    trained = parameters()
    expected = float64_adamw([p.asnumpy() for p in trained], beta1, beta2, epsilon, decay)
    run(AdamW(trained, beta1, beta2, epsilon, decay))
    for parameter, value in zip(trained, expected):
        error = np.linalg.norm(parameter.asnumpy() - value) / np.linalg.norm(value)
        assert error <= 1e-6, parameter.name


@pytest.mark.reference
def test_equals_torch():
    torch = pytest.importorskip("torch")
    trained = parameters()
    theirs = torch_parameters(torch, trained)
    torch_run(torch, lambda groups: torch.optim.AdamW(groups, lr=1.0), theirs, decay=0.1)
    run(AdamW(trained, weight_decay=0.1))
    for ours, their in zip(trained, theirs):
        np.testing.assert_allclose(ours.asnumpy(), their.detach().numpy(), rtol=2e-6, atol=1e-6)
