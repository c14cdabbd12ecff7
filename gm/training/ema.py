"""An exponential moving average of the weights, updated inside the compiled step."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.ops import operations as P

from gm.kernels.operators import updating
from gm.models.layers import stands_in

_map = ops.HyperMap()
_descend = P.ApplyGradientDescent()
_approach = ops.MultitypeFuncGraph("approach")


@_approach.register("Tensor", "Tensor", "Tensor")
def _approach_tensor(pace, average, parameter):
    _descend(average, pace, average - parameter)
    return True


@contextmanager
def in_place_of(parameters: Sequence[Parameter], averages: Sequence[Parameter]) -> Iterator[None]:
    """Let ``parameters`` have the values of their ``averages``, and in the end their own again, bit for bit."""
    own = [parameter.astype(ms.float32).asnumpy().copy() for parameter in parameters]  # exact for narrower types too
    try:
        for parameter, average in zip(parameters, averages):
            parameter.set_data(Tensor(average.asnumpy(), parameter.dtype))
        yield
    finally:
        for parameter, values in zip(parameters, own):
            parameter.set_data(Tensor(values, parameter.dtype))


class EMA(nn.Cell):
    """Averages ``ema.<name>`` of ``parameters`` in float32, which start as copies.

    ``construct(updates)``: the number of updates of the weights made, a float32 scalar tensor. After every
    ``interval``-th the average moves. Its decay warms up: ``min(decay, (1 + n) / (10 + n))`` with n the number of moves
    before, so that the average forgets the start (as TensorFlow and diffusers do). ``masters``: what is averaged in
    place of ``parameters``, where those are roundings of it.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        decay: float,
        interval: int = 1,
        masters: Sequence[Parameter] | None = None,
    ):
        super().__init__(auto_prefix=False)
        self.source = ParameterTuple(parameters if masters is None else masters)
        self.ema = ParameterTuple(
            [
                Parameter(source.asnumpy().copy(), name=f"ema.{parameter.name}", requires_grad=False)
                for parameter, source in zip(parameters, self.source)
            ]
        )
        count, self.kernel = len(self.ema), None
        if stands_in("update"):
            self.kernel = updating("approach", [False] + [True] * count + [False] * count)
        self.interval = interval
        self.decay = Tensor(decay, ms.float32)

    @property
    def state(self) -> list[Parameter]:
        """Everything an exact resume has to restore."""
        return list(self.ema)

    def construct(self, updates: Tensor) -> Tensor:
        if self.interval == 1:
            return self.move(updates - 1.0)
        moves = ops.floor(updates / self.interval)
        pace = self.decay
        if moves * self.interval == updates:
            pace = self.move(moves - 1.0)
        return pace

    def move(self, moves: Tensor) -> Tensor:
        pace = 1.0 - ops.minimum(self.decay, (1.0 + moves) / (10.0 + moves))
        if self.kernel is not None:
            moved = self.kernel(pace.reshape(1), *self.ema, *self.source)
        else:
            moved = _map(ops.partial(_approach, pace), self.ema, self.source)
        # MindSpore drops a branch whose result nothing depends on.
        return ops.depend(pace, moved)
