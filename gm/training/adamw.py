"""AdamW with decoupled weight decay (Loshchilov & Hutter 2017, arXiv 1711.05101, algorithm 2), as a Cell.

Exact, bias correction included, on every device and in both modes. The update of a tensor is one fused ``Adam``
kernel, and one pass before it where the tensor decays; on the CPU that of all tensors is one kernel of our own.
"""

import math
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops
from mindspore.ops import operations as P

from gm.training.optimizer import Optimizer, zeros

_map = ops.HyperMap()
_adam = P.Adam()
_update = ops.MultitypeFuncGraph("update")


@_update.register("Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor")
def _update_tensor(rate, epsilon, beta1, beta2, zero, parameter, m, v, gradient):
    # Powers of zero: the bias correction is in ``rate`` and ``epsilon`` already.
    _adam(parameter, m, v, zero, zero, rate, beta1, beta2, epsilon, gradient.astype(ms.float32))
    return True


def bias_correction(step: Tensor, log_beta: float) -> Tensor:
    """``1 - beta**step`` for a float32 scalar ``step``, to float32 precision.

    ``1 - exp(x)`` cancels for small x, and MindSpore's ``expm1`` on CPU does the same; tanh does not.
    """
    x = step * log_beta
    half = ops.tanh(0.5 * x)
    return ops.select(x > -1.0, -2.0 * half / (1.0 - half), 1.0 - ops.exp(x))


class AdamW(Optimizer):
    """Two moments: ``adam_m.<name>`` and ``adam_v.<name>`` per parameter; ``adam_step`` counts the updates."""

    def __init__(
        self,
        parameters: Sequence[Parameter],
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 1e-2,
    ):
        super().__init__(parameters, weight_decay, "adam_step")
        self.adam_m = zeros(self.trained, "adam_m")
        self.adam_v = zeros(self.trained, "adam_v")
        self.take_kernel("adamw", moments=2)
        # Of the rounded betas, which the kernel works with: 1 - 0.999 in float32 is off by 1e-5, and cancels only so.
        self.log_beta1, self.log_beta2 = (math.log(max(np.float32(beta), 1e-30)) for beta in (beta1, beta2))
        self.beta1, self.beta2 = Tensor(beta1, ms.float32), Tensor(beta2, ms.float32)
        self.epsilon = epsilon
        self.zero = Tensor(0.0, ms.float32)

    @property
    def moments(self) -> list[Parameter]:
        return [*self.adam_m, *self.adam_v]

    def update(self, gradients: tuple[Tensor, ...], lr: Tensor) -> None:
        rate, epsilon = self.corrected(lr)
        self.decay(lr)
        update = ops.partial(_update, rate, epsilon, self.beta1, self.beta2, self.zero)
        _map(update, self.masters, self.adam_m, self.adam_v, gradients)

    def update_at_once(self, gradients: tuple[Tensor, ...], lr: Tensor, factor: Tensor) -> None:
        rate, epsilon = self.corrected(lr)
        settings = ops.stack((rate, epsilon, self.beta1, self.beta2, lr * self.weight_decay, factor))
        self.kernel(settings, self.decays, *self.masters, *self.adam_m, *self.adam_v, *gradients)

    def corrected(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        """Rate and epsilon with the bias corrections in them.

        The kernels add epsilon to sqrt(v) before the correction of v; scaled so, their result is the paper's.
        """
        correction1 = bias_correction(self.updates, self.log_beta1)
        root2 = ops.sqrt(bias_correction(self.updates, self.log_beta2))
        return lr * root2 / correction1, self.epsilon * root2
