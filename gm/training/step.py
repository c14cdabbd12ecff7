"""The compiled training step: loss, gradients, clipping, optimizer and average in one graph."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from gm.compilation import Graph
from gm.data.batches import PICTURE_FIELDS
from gm.training import gradients
from gm.training.ema import EMA
from gm.training.exchange import Exchange
from gm.training.loss import BATCH_FIELDS, DiffusionLoss
from gm.training.optimizer import Optimizer, zeros
from gm.training.scaler import SMALLEST, Differentiate, LossScale
from gm.training.sharing import SharedOptimizer


class Numbers(NamedTuple):
    """The numbers of a step, on the host. ``loss_scale`` is the one it used, ``skipped_steps`` the count so far."""

    loss: float
    raw_loss: float
    grad_norm: float
    loss_scale: float | None = None
    skipped_steps: int | None = None

    @property
    def sound(self) -> bool:
        """Whether the step updated, or skipped an overflow that a smaller loss scale can mend."""
        if not math.isfinite(self.loss):
            return False
        return math.isfinite(self.grad_norm) or (self.loss_scale or SMALLEST) > SMALLEST

    def record(self) -> dict[str, float | None]:
        """By name, as logged: None for what is not a number, and nothing of a loss scale where there is none."""
        found = {name: value for name, value in self._asdict().items() if value is not None}
        return {name: value if math.isfinite(value) else None for name, value in found.items()}


class Outputs(NamedTuple):
    """What a step returns, still on the device: ``Numbers`` as tensors, and a mark for each gradient.

    A mark is finite if the sum of the gradient's squares is.
    """

    loss: Tensor
    raw_loss: Tensor
    grad_norm: Tensor
    marks: Tensor
    loss_scale: Tensor | None = None
    skipped_steps: Tensor | None = None

    def fetch(self) -> Numbers:
        """Wait for the step."""
        numbers = [float(output.asnumpy()) for output in (self.loss, self.raw_loss, self.grad_norm)]
        if self.loss_scale is None:
            return Numbers(*numbers)
        return Numbers(*numbers, float(self.loss_scale.asnumpy()), int(self.skipped_steps.asnumpy()))

    def not_finite(self, weights: Sequence[Parameter]) -> list[str]:
        """Names of those of the ``weights``, which are the optimizer's ``taken``, whose gradients were not finite."""
        finite = np.isfinite(self.marks.asnumpy())
        return [weight.name for weight, good in zip(weights, finite) if not good]


class Update(nn.Cell):
    """Clip, optimize and average, unless loss or gradients are not finite: then no weight and no moment changes.

    ``construct(gradients, loss, lr)`` returns what ``Outputs`` has beside the losses. The gradients are those of the
    optimizer's ``masters``, with the loss scale in them; what is returned is without it.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_grad_norm: float | None,
        ema: EMA | None,
        scaler: LossScale | None,
        exchange: Exchange | None = None,
    ):
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer
        self.exchange = exchange
        self.square_sums = gradients.SquareSums()
        self.shared = isinstance(optimizer, SharedOptimizer)
        self.max_grad_norm = max_grad_norm
        self.ema = ema
        self.scaler = scaler
        self.none = Tensor(0.0, ms.float32)

    def construct(self, grads: tuple[Tensor, ...], loss: Tensor, lr: Tensor) -> tuple[Tensor, ...]:
        sums = self.square_sums(grads)
        if self.exchange is not None:
            sums = self.exchange.square_sums(sums)
        norm = ops.sqrt(ops.reduce_sum(sums))
        if self.scaler is not None:
            unscale = 1.0 / self.scaler.scale
            norm = norm * unscale
        updates = self.none
        if ops.isfinite(norm + loss):
            factor = None
            if self.max_grad_norm is not None:
                factor = gradients.clip_factor(norm, self.max_grad_norm)
                if self.scaler is not None:
                    factor = factor * unscale
            elif self.scaler is not None:
                factor = unscale
            updates = self.optimizer(grads, lr, factor)
            if self.ema is not None:
                updates = ops.depend(updates, self.ema(updates))
        # Where the gradients are Parameters, MindSpore drops a branch whose result nothing depends on.
        norm = ops.depend(norm, updates)
        if self.shared:
            norm = self.optimizer.publish(norm)  # not in the branch: a device that went alone would wait for ever
        if self.scaler is None:
            return norm, sums
        loss_scale, skipped = self.scaler(loss, norm)
        return norm, sums, loss_scale, skipped


class TrainStep(Graph):
    """One batch, one update.

    ``construct(lr, *batch)``: a float32 scalar tensor, and the fields of a batch in the order of ``loss``. The learning
    rate is an input, so a schedule never compiles anew. Returns the tensors of ``Outputs``. With an ``exchange`` the
    batch is this device's part, and everything returned is of the whole one.
    """

    def __init__(
        self,
        loss: DiffusionLoss,
        optimizer: Optimizer,
        max_grad_norm: float | None = None,
        ema: EMA | None = None,
        scaler: LossScale | None = None,
        exchange: Exchange | None = None,
    ):
        super().__init__(auto_prefix=False)
        self.exchange = exchange
        self.update = Update(optimizer, max_grad_norm, ema, scaler, exchange)
        self.differentiate = Differentiate(loss, optimizer.trained, scaler)

    def construct(self, lr: Tensor, *batch: Tensor) -> tuple[Tensor, ...]:
        loss, raw_loss, grads = self.differentiate(*batch)
        if self.exchange is not None:
            loss, raw_loss = self.exchange.losses(loss, raw_loss)
            grads = self.exchange(grads)
        return (loss, raw_loss) + self.update(grads, loss, lr)

    def take(self, parts: Sequence[tuple[Tensor, ...]], lr: Tensor) -> Outputs:
        """Update with the one batch in ``parts``."""
        (batch,) = parts
        return Outputs(*self(lr, *batch))


class Gather(Graph):
    """Adds ``share`` of a batch's gradients to ``sums``; returns that share of its weighted and its plain loss."""

    def __init__(
        self, differentiate: Differentiate, sums: gradients.Sums, share: float, exchange: Exchange | None = None
    ):
        super().__init__(auto_prefix=False)
        self.differentiate, self.exchange = differentiate, exchange
        self.early = exchange is not None and exchange.early
        self.sums, self.share = sums, Tensor(share, ms.float32)

    def construct(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        loss, raw_loss, grads = self.differentiate(*batch)
        if self.exchange is not None:
            loss, raw_loss = self.exchange.losses(loss, raw_loss)
        if self.early:
            grads = self.exchange(grads)
        self.sums(grads, self.share)
        return loss * self.share, raw_loss * self.share


class Apply(Graph):
    """Updates with the summed gradients and starts the sums anew; returns what ``Update`` does."""

    def __init__(self, update: Update, sums: gradients.Sums, exchange: Exchange | None = None):
        super().__init__(auto_prefix=False)
        self.update, self.sums, self.exchange = update, sums, exchange
        self.late = exchange is not None and not exchange.early

    def construct(self, loss: Tensor, lr: Tensor) -> tuple[Tensor, ...]:
        grads = self.sums.totals
        if self.late:
            grads = self.exchange(grads)
        outputs = self.update(grads, loss, lr)
        self.sums.clear()
        return outputs


class AccumulatingStep:
    """Several batches, one update: what ``TrainStep`` does with one batch of all their samples."""

    def __init__(
        self,
        loss: DiffusionLoss,
        optimizer: Optimizer,
        max_grad_norm: float | None,
        ema: EMA | None,
        batches: int,
        scaler: LossScale | None = None,
        exchange: Exchange | None = None,
    ):
        early = exchange is not None and exchange.early
        sums = gradients.Sums(zeros(optimizer.masters if early else optimizer.trained, "gradient"))
        differentiate = Differentiate(loss, optimizer.trained, scaler)
        self.gather = Gather(differentiate, sums, 1.0 / batches, exchange)
        self.apply = Apply(Update(optimizer, max_grad_norm, ema, scaler, exchange), sums, exchange)

    def set_train(self) -> None:
        self.gather.set_train()
        self.apply.set_train()

    def take(self, parts: Sequence[tuple[Tensor, ...]], lr: Tensor) -> Outputs:
        """Update with the batches in ``parts``."""
        losses, raw_losses = zip(*(self.gather(*batch) for batch in parts))
        loss = sum(losses)
        return Outputs(loss, sum(raw_losses), *self.apply(loss, lr))


def fields_of(batch: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """The fields of a batch in the order of the loss that takes it."""
    return PICTURE_FIELDS if "pictures" in batch else BATCH_FIELDS


def arrays(batch: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """The arrays of a batch in the order and the types of the step."""
    types = {"ids": np.int32}
    return tuple(np.ascontiguousarray(batch[name], types.get(name, np.float32)) for name in fields_of(batch))


def tensors(batch: Mapping[str, np.ndarray]) -> tuple[Tensor, ...]:
    """A batch as the step takes it."""
    return tuple(Tensor(array) for array in arrays(batch))
