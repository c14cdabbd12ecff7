"""An exponential moving average of the weights, updated inside the compiled step."""

from collections.abc import Sequence

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.ops import operations as P

_map = ops.HyperMap()
_descend = P.ApplyGradientDescent()
_approach = ops.MultitypeFuncGraph("approach")


@_approach.register("Tensor", "Tensor", "Tensor")
def _approach_tensor(pace, average, parameter):
    _descend(average, pace, average - parameter)
    return True


class EMA(nn.Cell):
    """Averages ``ema.<name>`` of ``parameters``, which start as copies.

    ``construct(updates)``: the number of averaging steps made before, a float32 scalar tensor. The decay warms up:
    ``min(decay, (1 + n) / (10 + n))``, so that the average forgets the start (as TensorFlow and diffusers do).
    """

    def __init__(self, parameters: Sequence[Parameter], decay: float):
        super().__init__(auto_prefix=False)
        self.source = ParameterTuple(parameters)
        self.ema = self.source.clone(prefix="ema", init="same")
        self.decay = Tensor(decay, ms.float32)

    @property
    def state(self) -> list[Parameter]:
        """Everything an exact resume has to restore."""
        return list(self.ema)

    def construct(self, updates: Tensor) -> Tensor:
        pace = 1.0 - ops.minimum(self.decay, (1.0 + updates) / (10.0 + updates))
        _map(ops.partial(_approach, pace), self.ema, self.source)
        return pace
