"""Tensors and gradients to try optimizers on."""

from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from gm.training.optimizer import Optimizer

SHAPES = {"conv.weight": (3, 4, 3, 3), "linear.weight": (5, 7), "norm.weight": (7,), "linear.bias": (5,)}
STEPS = 20


def parameters(dtype: ms.Type = ms.float32) -> list[Parameter]:
    rng = np.random.default_rng(1)
    return [Parameter(Tensor(rng.standard_normal(shape), dtype), name=name) for name, shape in SHAPES.items()]


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

    def __init__(self, optimizer: Optimizer):
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer

    def construct(self, lr, *gradients):
        return self.optimizer(gradients, lr)


def run(
    optimizer: Optimizer, part: slice = slice(None), dtype: ms.Type = ms.float32, rate: float | None = None
) -> Driver:
    """Take the steps of ``history``, at its learning rates or at one ``rate``."""
    driver = Driver(optimizer)
    for lr, gradients in history()[part]:
        driver(Tensor(lr if rate is None else rate, ms.float32), *(Tensor(gradient, dtype) for gradient in gradients))
    return driver


def torch_parameters(torch, trained: list[Parameter], shape: Callable = tuple) -> list:
    """Copies of ``trained`` for torch; ``shape`` of a shape is the one they have there."""
    return [torch.nn.Parameter(torch.from_numpy(p.asnumpy().copy()).reshape(shape(p.shape))) for p in trained]


def torch_run(torch, build: Callable, theirs: list, decay: float) -> None:
    """Take all steps with the torch optimizer ``build(groups)``: no decay for vectors, rates as in ``history``."""
    vectors = [len(shape) == 1 for shape in SHAPES.values()]
    optimizer = build(
        [
            {"params": [p for p, vector in zip(theirs, vectors) if not vector], "weight_decay": decay},
            {"params": [p for p, vector in zip(theirs, vectors) if vector], "weight_decay": 0.0},
        ]
    )
    for lr, gradients in history():
        for group in optimizer.param_groups:
            if group["lr"] is not None:
                group["lr"] = lr
        for parameter, gradient in zip(theirs, gradients):
            parameter.grad = torch.from_numpy(gradient).reshape(parameter.shape)
        optimizer.step()
