"""AdamW is the paper's, with bias correction, to float32 precision."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from gm.training.optimizer import AdamW

SHAPES = {"conv.weight": (3, 4, 3, 3), "linear.weight": (5, 7), "norm.weight": (7,), "linear.bias": (5,)}
STEPS = 20


def parameters() -> list[Parameter]:
    rng = np.random.default_rng(1)
    return [Parameter(Tensor(rng.standard_normal(shape), ms.float32), name=name) for name, shape in SHAPES.items()]


def history() -> list[tuple[float, list[np.ndarray]]]:
    """(learning rate, gradients) of every step; magnitudes differ widely between tensors."""
    rng = np.random.default_rng(2)
    scales = (1.0, 1e-3, 10.0, 1e-6)
    return [
        (
            1e-3 * (1 + step % 3),
            [(scale * rng.standard_normal(shape)).astype(np.float32) for scale, shape in zip(scales, SHAPES.values())],
        )
        for step in range(STEPS)
    ]


class Driver(nn.Cell):
    """Takes gradients one by one: a graph's own tuple argument would be a constant, compiled anew each time."""

    def __init__(self, optimizer: AdamW):
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer

    def construct(self, lr, *gradients):
        return self.optimizer(gradients, lr)


def run(optimizer: AdamW, part: slice = slice(None)) -> Driver:
    driver = Driver(optimizer)
    for lr, gradients in history()[part]:
        driver(Tensor(lr, ms.float32), *map(Tensor, gradients))
    return driver


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


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
@pytest.mark.parametrize(("beta1", "beta2", "epsilon", "decay"), [(0.9, 0.999, 1e-8, 0.1), (0.0, 0.95, 1e-4, 0.0)])
def test_equals_float64(mode, beta1, beta2, epsilon, decay):
    ms.set_context(mode=mode)
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
    theirs = [torch.nn.Parameter(torch.from_numpy(p.asnumpy().copy())) for p in trained]
    groups = [
        {"params": [p for p in theirs if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in theirs if p.ndim == 1], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=1.0)
    for lr, gradients in history():
        for group in reference.param_groups:
            group["lr"] = lr
        for parameter, gradient in zip(theirs, gradients):
            parameter.grad = torch.from_numpy(gradient)
        reference.step()
    run(AdamW(trained, weight_decay=0.1))
    for ours, their in zip(trained, theirs):
        np.testing.assert_allclose(ours.asnumpy(), their.detach().numpy(), rtol=2e-6, atol=1e-6)


def test_state_is_named_and_enough_to_go_on():
    whole, first = parameters(), parameters()
    run(AdamW(whole))
    optimizer = AdamW(first)
    run(optimizer, slice(STEPS // 2))
    saved = {parameter.name: parameter.asnumpy().copy() for parameter in optimizer.state}
    assert set(saved) == {"adam_step"} | {f"{moment}.{name}" for moment in ("adam_m", "adam_v") for name in SHAPES}
    assert saved["adam_step"] == STEPS // 2

    second = [Parameter(Tensor(p.asnumpy().copy()), name=p.name) for p in first]
    resumed = AdamW(second)
    for parameter in resumed.state:
        parameter.set_data(Tensor(saved[parameter.name]))
    run(resumed, slice(STEPS // 2, None))
    for one, other in zip(whole, second):
        np.testing.assert_array_equal(one.asnumpy(), other.asnumpy())


def test_a_new_learning_rate_compiles_nothing():
    assert len(run(AdamW(parameters())).compile_cache) == 1
