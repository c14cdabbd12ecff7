"""Lion (Chen et al. 2023, arXiv 2302.06675, algorithm 2): one moment, and steps of one size, the sign of it.

It needs learning rates 3 to 10 times smaller than AdamW and as much larger weight decay (section 5 of the paper).
"""

from collections.abc import Sequence

import mindspore as ms
from mindspore import Parameter, Tensor, ops

from gm.training.optimizer import Optimizer, zeros

_map = ops.HyperMap()
_update = ops.MultitypeFuncGraph("update")


@_update.register("Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor")
def _update_tensor(rate, beta1, beta2, parameter, m, gradient):
    wide = gradient.astype(ms.float32)
    direction = ops.sign(beta1 * m + (1.0 - beta1) * wide)
    ops.assign(parameter, parameter - rate * direction)
    ops.assign(m, beta2 * m + (1.0 - beta2) * wide)
    return True


class Lion(Optimizer):
    """One moment: ``lion_m.<name>`` per parameter; ``lion_step`` counts the updates."""

    def __init__(
        self,
        parameters: Sequence[Parameter],
        beta1: float = 0.9,
        beta2: float = 0.99,
        weight_decay: float = 1e-2,
    ):
        super().__init__(parameters, weight_decay, "lion_step")
        self.lion_m = zeros(self.trained, "lion_m")
        self.take_kernel("lion", moments=1)
        self.beta1, self.beta2 = Tensor(beta1, ms.float32), Tensor(beta2, ms.float32)

    @property
    def moments(self) -> list[Parameter]:
        return list(self.lion_m)

    def update(self, gradients: tuple[Tensor, ...], lr: Tensor) -> None:
        self.decay(lr)
        _map(ops.partial(_update, lr, self.beta1, self.beta2), self.masters, self.lion_m, gradients)

    def update_at_once(self, gradients: tuple[Tensor, ...], lr: Tensor, factor: Tensor) -> None:
        settings = ops.stack((lr, self.beta1, self.beta2, lr * self.weight_decay, factor))
        self.kernel(settings, self.decays, *self.masters, *self.lion_m, *gradients)
