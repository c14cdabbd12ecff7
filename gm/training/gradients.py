"""What happens to gradients between the backward pass and the optimizer, as graph functions and Cells.

Over many tensors by a kernel of our own on the CPU, and by HyperMap elsewhere: a Python loop is unrolled by the graph
parser and takes ten times as long to compile.
"""

import mindspore as ms
from mindspore import ParameterTuple, Tensor, nn, ops

from gm.kernels.operators import operator, updating
from gm.models.layers import stands_in

_map = ops.HyperMap()
_square_sum = ops.MultitypeFuncGraph("square_sum")
_widen = ops.MultitypeFuncGraph("widen")
_scale = ops.MultitypeFuncGraph("scale")
_add = ops.MultitypeFuncGraph("add")
_clear = ops.MultitypeFuncGraph("clear")


@_square_sum.register("Tensor")
def _square_sum_tensor(gradient):
    wide = gradient.astype(ms.float32)
    return ops.reduce_sum(wide * wide)


@_widen.register("Tensor")
def _widen_tensor(gradient):
    return gradient.astype(ms.float32)


@_scale.register("Tensor", "Tensor")
def _scale_tensor(factor, gradient):
    return gradient.astype(ms.float32) * factor


@_add.register("Tensor", "Tensor", "Tensor")
def _add_tensor(factor, total, gradient):
    ops.assign_add(total, gradient.astype(ms.float32) * factor)
    return True


@_clear.register("Tensor")
def _clear_tensor(total):
    ops.assign(total, ops.zeros_like(total))
    return True


def _one_each(*shapes):
    return (len(shapes),)


class SquareSums(nn.Cell):
    """The sum of squares of each gradient, a float32 vector; not finite where a gradient is not."""

    def __init__(self):
        super().__init__(auto_prefix=False)
        self.kernel = operator("square_sums", 1, _one_each) if stands_in("square_sums") else None

    def construct(self, gradients: tuple[Tensor, ...]) -> Tensor:
        if self.kernel is not None:
            return self.kernel(*widen(gradients))
        return ops.stack(_map(_square_sum, gradients))


def widen(gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Every gradient in float32."""
    return _map(_widen, gradients)


def scale(gradients: tuple[Tensor, ...], factor: Tensor) -> tuple[Tensor, ...]:
    """Every gradient times a float32 scalar tensor, in float32."""
    return _map(ops.partial(_scale, factor), gradients)


class Sums(nn.Cell):
    """Gradients summed up in ``totals``, float32 Parameters."""

    def __init__(self, totals: ParameterTuple):
        super().__init__(auto_prefix=False)
        self.totals = totals
        count, self.kernels = len(totals), stands_in("update")
        if self.kernels:
            self.accumulate = updating("accumulate", [False] + [True] * count + [False] * count)
            self.zero = updating("clear", [True] * count)

    def construct(self, gradients: tuple[Tensor, ...], factor: Tensor) -> None:
        """Add every gradient times a float32 scalar tensor."""
        if self.kernels:
            self.accumulate(factor.reshape(1), *self.totals, *widen(gradients))
        else:
            _map(ops.partial(_add, factor), self.totals, gradients)

    def clear(self) -> None:
        """Begin anew."""
        if self.kernels:
            self.zero(*self.totals)
        else:
            _map(_clear, self.totals)


def clip_factor(norm: Tensor, max_norm: float) -> Tensor:
    """What brings gradients of that global norm down to ``max_norm``, 1 below it (as torch's ``clip_grad_norm_``)."""
    return ops.minimum(max_norm / (norm + 1e-6), Tensor(1.0, ms.float32))
