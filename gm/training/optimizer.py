"""What all optimizers have in common: float32 weights, a count of updates, decoupled weight decay.

An optimizer is a Cell: ``construct(gradients, lr, factor)`` takes a tuple of tensors in the order of ``trained``, the
learning rate and what the gradients are to be multiplied with, float32 scalar tensors. It updates the weights, and
returns the number of updates made. Its arithmetic is float32 whatever the gradients are. Over many tensors it goes by
HyperMap: a Python loop takes ten times as long to compile.

On a CPU one that goes number by number is one kernel over all tensors (``gm/kernels``).
"""

from collections.abc import Sequence

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.common.initializer import initializer
from mindspore.ops import operations as P

from gm.kernels.operators import updating
from gm.models.layers import stands_in
from gm.parallel.shards import Item
from gm.training import gradients as of_gradients

_map = ops.HyperMap()
_descend = P.ApplyGradientDescent()
_shrink = ops.MultitypeFuncGraph("shrink")
_narrow = ops.MultitypeFuncGraph("narrow")


@_shrink.register("Tensor", "Tensor")
def _shrink_tensor(decay, parameter):
    _descend(parameter, decay, parameter)
    return True


@_narrow.register("Tensor", "Tensor")
def _narrow_tensor(parameter, master):
    ops.assign(parameter, master.astype(parameter.dtype))
    return True


def decays(parameter: Parameter) -> bool:
    """Whether weight decay applies: to matrices and kernels, not to norms and biases."""
    return len(parameter.shape) > 1


def decaying(parameter: Parameter) -> bool:
    """``decays`` for what may also be a flat shard, which says it itself."""
    return getattr(parameter, "decays", decays(parameter))


def items(parameters: Sequence[Parameter]) -> list[Item]:
    """Parameters as buckets know them."""
    return [Item(parameter.name, tuple(parameter.shape), decays(parameter)) for parameter in parameters]


def zeros(parameters: Sequence[Parameter], prefix: str) -> ParameterTuple:
    """A float32 zero ``prefix.<name>`` for each parameter, in its shape."""
    return ParameterTuple([zero(f"{prefix}.{parameter.name}", parameter.shape) for parameter in parameters])


def zero(name: str, shape: tuple[int, ...]) -> Parameter:
    """A float32 parameter that is state and not a weight."""
    return Parameter(initializer("zeros", shape, ms.float32), name=name, requires_grad=False)


class Optimizer(nn.Cell):
    """``trained`` are the weights of the network; ``masters`` the float32 weights that are updated.

    They are the same Parameters, but for weights the network keeps in float16 (``--param_fp16``): these have a master
    ``master.<name>``, and are its rounding after each update. An update of 1e-5 of a weight would be lost in float16.
    """

    def __init__(self, parameters: Sequence[Parameter], weight_decay: float, counter: str):
        super().__init__(auto_prefix=False)
        self.trained = ParameterTuple(parameters)
        narrow = [parameter for parameter in parameters if parameter.dtype != ms.float32]
        copies = [
            Parameter(parameter.astype(ms.float32), name=f"master.{parameter.name}", requires_grad=False)
            for parameter in narrow
        ]
        self.of_narrow = dict(zip((parameter.name for parameter in narrow), copies))
        self.masters = ParameterTuple(self.wide(parameters))
        self.narrow, self.copies = ParameterTuple(narrow), ParameterTuple(copies)
        self.narrows = len(narrow) > 0
        self.weight_decay = weight_decay
        decayed = [weight_decay > 0 and decaying(parameter) for parameter in parameters]
        self.decayed = ParameterTuple([master for master, shrinks in zip(self.masters, decayed) if shrinks])
        self.shrinks = len(self.decayed) > 0
        self.decays = Tensor(decayed, ms.float32)
        self.kernel = None
        self.updates = zero(counter, ())
        self.one = Tensor(1.0, ms.float32)

    def wide(self, parameters: Sequence[Parameter]) -> list[Parameter]:
        """The float32 weights behind ``parameters``, trained or not."""
        return [self.of_narrow.get(parameter.name, parameter) for parameter in parameters]

    def take_kernel(self, name: str, moments: int) -> None:
        """Let ``kernel`` be the one of this name over all tensors, with so many moments, where there is one.

        Its inputs are settings, ``decays``, masters, moments and gradients.
        """
        count = len(self.masters)
        if stands_in("update"):
            self.kernel = updating(name, [False] * 2 + [True] * count * (1 + moments) + [False] * count)

    @property
    def taken(self) -> Sequence[Parameter]:
        """What each of the gradients it takes is of."""
        return self.trained

    @property
    def moments(self) -> list[Parameter]:
        """The state of this kind of optimizer."""
        raise NotImplementedError

    @property
    def state(self) -> list[Parameter]:
        """Everything but the weights of the network that an exact resume has to restore."""
        return [self.updates, *self.moments, *self.copies]

    def construct(self, gradients: tuple[Tensor, ...], lr: Tensor, factor: Tensor | None = None) -> Tensor:
        ops.assign_add(self.updates, self.one)
        if self.kernel is not None:
            self.update_at_once(of_gradients.widen(gradients), lr, self.one if factor is None else factor)
        else:
            self.update(gradients if factor is None else of_gradients.scale(gradients, factor), lr)
        if self.narrows:
            _map(_narrow, self.narrow, self.copies)
        return self.updates

    def update(self, gradients: tuple[Tensor, ...], lr: Tensor) -> None:
        """Change the masters; ``updates`` counts this one already."""
        raise NotImplementedError

    def update_at_once(self, gradients: tuple[Tensor, ...], lr: Tensor, factor: Tensor) -> None:
        """The same by ``kernel``, with ``factor`` times the gradients."""
        raise NotImplementedError

    def decay(self, lr: Tensor) -> None:
        """Take ``lr * weight_decay`` of what decays (Loshchilov & Hutter 2017, arXiv 1711.05101)."""
        if self.shrinks:
            _map(ops.partial(_shrink, lr * self.weight_decay), self.decayed)
