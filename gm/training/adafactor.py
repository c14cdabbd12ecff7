"""Adafactor (Shazeer & Stern 2018, arXiv 1804.04235, algorithms 4 and 5), without a first moment.

Its second moment of a matrix is the outer product of two vectors, so its state is next to nothing.
"""

from collections.abc import Sequence

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, ops

from gm.training.optimizer import Optimizer, decays, zero

EPSILON_SQUARE = 1e-30  # added to squared gradients
EPSILON_SIZE = 1e-3  # the least size a tensor is taken to have, with relative steps
CLIP_THRESHOLD = 1.0  # largest root mean square of an update, in learning rates
DECAY_RATE = 0.8  # the decay of the second moment is 1 - step ** -DECAY_RATE

_map = ops.HyperMap()
_update = ops.MultitypeFuncGraph("update")


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """How a tensor is taken as a matrix: a kernel (out, in, k, k) as (out, in k k), a vector as one row."""
    count = 1
    for side in shape[1:]:
        count *= side
    return (shape[0], count) if len(shape) > 1 else (1, shape[0])


@_update.register("Tensor", "Tensor", "Bool", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor")
def _update_tensor(decay2, lr, relative, weight_decay, parameter, row, column, gradient):
    matrix = gradient.astype(ms.float32).reshape(row.shape[0], column.shape[0])
    square = matrix * matrix + EPSILON_SQUARE
    rows = decay2 * row + (1.0 - decay2) * ops.reduce_mean(square, 1)
    columns = decay2 * column + (1.0 - decay2) * ops.reduce_mean(square, 0)
    ops.assign(row, rows)
    ops.assign(column, columns)
    # of a single row the first factor is 1, which leaves the second moment as it is
    update = matrix * ops.rsqrt(rows / ops.reduce_mean(rows)).reshape(-1, 1) * ops.rsqrt(columns).reshape(1, -1)
    update = update / ops.maximum(ops.sqrt(ops.reduce_mean(update * update)) / CLIP_THRESHOLD, Tensor(1.0, ms.float32))
    rate = lr
    if relative:
        size = ops.sqrt(ops.reduce_mean(parameter * parameter))
        rate = lr * ops.maximum(size, Tensor(EPSILON_SIZE, ms.float32))
    kept = parameter
    if decays(parameter):
        kept = parameter * (1.0 - rate * weight_decay)
    ops.assign(parameter, kept - rate * update.reshape(parameter.shape))
    return True


class Adafactor(Optimizer):
    """Two vectors ``adafactor_row.<name>``, ``adafactor_column.<name>`` per parameter; ``adafactor_step`` counts.

    With ``relative`` the step is that of the paper: the learning rate is no more than ``1 / sqrt(updates)``, and
    multiplied by the root mean square of the tensor (at least 1e-3).
    """

    def __init__(self, parameters: Sequence[Parameter], weight_decay: float = 1e-2, relative: bool = False):
        super().__init__(parameters, weight_decay, "adafactor_step")
        shapes = [(parameter.name, matrix_shape(parameter.shape)) for parameter in self.trained]
        self.rows = ParameterTuple([zero(f"adafactor_row.{name}", shape[:1]) for name, shape in shapes])
        self.columns = ParameterTuple([zero(f"adafactor_column.{name}", shape[1:]) for name, shape in shapes])
        self.relative = relative
        self.weight_decay = Tensor(weight_decay, ms.float32)

    @property
    def moments(self) -> list[Parameter]:
        return [*self.rows, *self.columns]

    def update(self, gradients: tuple[Tensor, ...], lr: Tensor) -> None:
        decay2 = 1.0 - ops.pow(self.updates, -DECAY_RATE)
        rate = lr
        if self.relative:
            rate = ops.minimum(lr, ops.rsqrt(self.updates))
        update = ops.partial(_update, decay2, rate, self.relative, self.weight_decay)
        _map(update, self.masters, self.rows, self.columns, gradients)
