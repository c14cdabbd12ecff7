"""Dynamic loss scaling for float16 (Micikevicius et al. 2017, arXiv 1710.03740, section 3.2), inside the compiled step.

Small gradients vanish in float16. So the loss is multiplied by a scale before the backward pass and the gradients are
divided by it after, in float32; the scale is as large as the gradients' range allows, found by trying.
"""

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

START = 65536.0
SMALLEST, LARGEST = 1.0, 2.0**24


class LossScale(nn.Cell):
    """Halves where gradients overflow, and doubles after ``window`` steps in a row where they did not.

    ``construct(loss, norm)`` adjusts the scale after a step: ``norm`` is that of the gradients. A loss that is not
    finite changes nothing: no scale could have saved it. Returns ``scale`` as the step used it and ``skipped``, the
    steps without an update so far.
    """

    def __init__(self, start: float = START, window: int = 2000):
        super().__init__(auto_prefix=False)
        self.scale = Parameter(Tensor(start, ms.float32), name="loss_scale", requires_grad=False)
        self.clean = Parameter(Tensor(0.0, ms.float32), name="loss_scale_clean_steps", requires_grad=False)
        self.skipped = Parameter(Tensor(0.0, ms.float32), name="skipped_steps", requires_grad=False)
        self.window = window
        self.zero, self.one = Tensor(0.0, ms.float32), Tensor(1.0, ms.float32)
        self.smallest, self.largest = Tensor(SMALLEST, ms.float32), Tensor(LARGEST, ms.float32)

    @property
    def state(self) -> list[Parameter]:
        """Everything an exact resume has to restore."""
        return [self.scale, self.clean, self.skipped]

    def construct(self, loss: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
        used = self.scale + self.zero
        counts = ops.isfinite(loss)
        overflowed = ops.logical_and(counts, ops.logical_not(ops.isfinite(norm)))
        clean = ops.select(overflowed, self.zero, self.clean + counts.astype(ms.float32))
        grows = clean >= self.window
        halved, doubled = ops.maximum(used * 0.5, self.smallest), ops.minimum(used * 2.0, self.largest)
        skipped = self.skipped + overflowed.astype(ms.float32)
        scale = ops.select(overflowed, halved, ops.select(grows, doubled, used))
        used = ops.depend(used, ops.assign(self.scale, scale))
        used = ops.depend(used, ops.assign(self.clean, ops.select(grows, self.zero, clean)))
        used = ops.depend(used, ops.assign(self.skipped, skipped))
        return used, skipped


class _Scaled(nn.Cell):
    """The scaled loss to differentiate, and beside it the losses themselves."""

    def __init__(self, loss: nn.Cell):
        super().__init__(auto_prefix=False)
        self.loss = loss

    def construct(self, scale: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loss, raw_loss = self.loss(*batch)
        return loss * scale, loss, raw_loss


class Differentiate(nn.Cell):
    """``construct(*batch)`` returns weighted loss, plain loss and gradients; the scale is in the gradients."""

    def __init__(self, loss: nn.Cell, trained: ParameterTuple, scaler: LossScale | None = None):
        super().__init__(auto_prefix=False)
        self.scaler = scaler
        self.loss = loss if scaler is None else _Scaled(loss)
        self.loss_and_gradients = ops.value_and_grad(self.loss, None, trained, has_aux=True)

    def construct(self, *batch: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        if self.scaler is None:
            (loss, raw_loss), grads = self.loss_and_gradients(*batch)
        else:
            (_, loss, raw_loss), grads = self.loss_and_gradients(self.scaler.scale, *batch)
        return loss, raw_loss, grads
