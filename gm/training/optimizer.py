"""AdamW with decoupled weight decay (Loshchilov & Hutter 2017, arXiv 1711.05101, algorithm 2), as a Cell.

Exact, bias correction included, on every device and in both modes. The update of a tensor is one fused ``Adam``
kernel, and one pass before it where the tensor decays.
"""

import math
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.ops import operations as P

_map = ops.HyperMap()
_adam = P.Adam()
_descend = P.ApplyGradientDescent()
_shrink = ops.MultitypeFuncGraph("shrink")
_update = ops.MultitypeFuncGraph("update")


@_shrink.register("Tensor", "Tensor")
def _shrink_tensor(decay, parameter):
    _descend(parameter, decay, parameter)
    return True


@_update.register("Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor")
def _update_tensor(rate, epsilon, beta1, beta2, zero, parameter, m, v, gradient):
    # Powers of zero: the bias correction is in ``rate`` and ``epsilon`` already.
    _adam(parameter, m, v, zero, zero, rate, beta1, beta2, epsilon, gradient)
    return True


def decays(parameter: Parameter) -> bool:
    """Whether weight decay applies: to matrices and kernels, not to norms and biases."""
    return len(parameter.shape) > 1


def bias_correction(step: Tensor, log_beta: float) -> Tensor:
    """``1 - beta**step`` for a float32 scalar ``step``, to float32 precision.

    ``1 - exp(x)`` cancels for small x, and MindSpore's ``expm1`` on CPU does the same; tanh does not.
    """
    x = step * log_beta
    half = ops.tanh(0.5 * x)
    return ops.select(x > -1.0, -2.0 * half / (1.0 - half), 1.0 - ops.exp(x))


class AdamW(nn.Cell):
    """One update of ``parameters``.

    ``construct(gradients, lr)``: a tuple of tensors in the order of ``parameters`` and a float32 scalar tensor. The
    state is ``adam_m.<name>`` and ``adam_v.<name>`` per parameter, and ``adam_step``, the number of updates made.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 1e-2,
    ):
        super().__init__(auto_prefix=False)
        self.trained = ParameterTuple(parameters)
        self.adam_m = self.trained.clone(prefix="adam_m", init="zeros")
        self.adam_v = self.trained.clone(prefix="adam_v", init="zeros")
        self.adam_step = Parameter(Tensor(0.0, ms.float32), name="adam_step", requires_grad=False)
        self.decayed = ParameterTuple([p for p in parameters if weight_decay and decays(p)])
        self.shrinks = len(self.decayed) > 0
        # Of the rounded betas, which the kernel works with: 1 - 0.999 in float32 is off by 1e-5, and cancels only so.
        self.log_beta1, self.log_beta2 = (math.log(max(np.float32(beta), 1e-30)) for beta in (beta1, beta2))
        self.beta1, self.beta2 = Tensor(beta1, ms.float32), Tensor(beta2, ms.float32)
        self.epsilon, self.weight_decay = epsilon, weight_decay
        self.zero, self.one = Tensor(0.0, ms.float32), Tensor(1.0, ms.float32)

    @property
    def state(self) -> list[Parameter]:
        """Everything an exact resume has to restore."""
        return [self.adam_step, *self.adam_m, *self.adam_v]

    def construct(self, gradients: tuple[Tensor, ...], lr: Tensor) -> Tensor:
        ops.assign_add(self.adam_step, self.one)
        correction1 = bias_correction(self.adam_step, self.log_beta1)
        root2 = ops.sqrt(bias_correction(self.adam_step, self.log_beta2))
        # The kernel adds epsilon to sqrt(v) before the correction of v; scaled so, its result is the paper's.
        rate, epsilon = lr * root2 / correction1, self.epsilon * root2
        if self.shrinks:
            _map(ops.partial(_shrink, lr * self.weight_decay), self.decayed)
        update = ops.partial(_update, rate, epsilon, self.beta1, self.beta2, self.zero)
        _map(update, self.trained, self.adam_m, self.adam_v, gradients)
        return self.adam_step
