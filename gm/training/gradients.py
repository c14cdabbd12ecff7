"""What happens to gradients between the backward pass and the optimizer, as graph functions.

Over many tensors by HyperMap: a Python loop is unrolled by the graph parser and takes ten times as long to compile.
"""

import mindspore as ms
from mindspore import Tensor, ops
from mindspore.ops import operations as P

from gm.models.layers import stands_in

DOT_ROWS = 64  # products of vectors of which a sum of squares is made: the more, the more exact

_map = ops.HyperMap()
_l2_loss = P.L2Loss()
_dot = P.BatchMatMul(transpose_b=True)
_square_sum = ops.MultitypeFuncGraph("square_sum")
_size = ops.MultitypeFuncGraph("size")
_scale = ops.MultitypeFuncGraph("scale")
_add = ops.MultitypeFuncGraph("add")
_clear = ops.MultitypeFuncGraph("clear")


@ops.constexpr
def _kernel(size: int) -> str:
    """What adds up the squares of ``size`` numbers fastest, of the sums that are exact enough."""
    if stands_in("square_sum"):
        if size <= 2**14:
            return "loss"  # adds up naively on CPU: 4 % off at 20 million numbers
        if size >= 2**17 and size % DOT_ROWS == 0:
            return "dots"
    return "sum"


@ops.constexpr
def _shares(sizes: tuple[int, ...]) -> Tensor:
    """What the kernels' sums have to be multiplied with: L2Loss halves."""
    return Tensor([2.0 if _kernel(size) == "loss" else 1.0 for size in sizes], ms.float32)


@_size.register("Tensor")
def _size_tensor(gradient):
    return gradient.size


@_square_sum.register("Tensor")
def _square_sum_tensor(gradient):
    wide = gradient.astype(ms.float32)
    kernel = _kernel(gradient.size)
    if kernel == "loss":
        return _l2_loss(wide)
    if kernel == "dots":
        rows = wide.reshape(DOT_ROWS, 1, -1)
        return ops.reduce_sum(_dot(rows, rows))
    return ops.reduce_sum(wide * wide)


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


def square_sums(gradients: tuple[Tensor, ...]) -> Tensor:
    """The sum of squares of each gradient, a float32 vector; not finite where a gradient is not."""
    return ops.stack(_map(_square_sum, gradients)) * _shares(_map(_size, gradients))


def global_norm(gradients: tuple[Tensor, ...]) -> Tensor:
    """The l2 norm of all gradients together, a float32 scalar."""
    return ops.sqrt(ops.reduce_sum(square_sums(gradients)))


def scale(gradients: tuple[Tensor, ...], factor: Tensor) -> tuple[Tensor, ...]:
    """Every gradient times a float32 scalar tensor, in float32."""
    return _map(ops.partial(_scale, factor), gradients)


def add(sums: tuple[Tensor, ...], gradients: tuple[Tensor, ...], factor: Tensor) -> tuple[bool, ...]:
    """Add every gradient times a float32 scalar tensor to its sum, a float32 Parameter."""
    return _map(ops.partial(_add, factor), sums, gradients)


def clear(sums: tuple[Tensor, ...]) -> tuple[bool, ...]:
    """Set every sum, a Parameter, to zero."""
    return _map(_clear, sums)


def clip_factor(norm: Tensor, max_norm: float) -> Tensor:
    """What brings gradients of that global norm down to ``max_norm``, 1 below it (as torch's ``clip_grad_norm_``)."""
    return ops.minimum(max_norm / (norm + 1e-6), Tensor(1.0, ms.float32))
