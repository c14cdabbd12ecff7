"""The compiled training step: loss, gradients, clipping, optimizer and average in one graph."""

from collections.abc import Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops

from gm.compilation import Graph
from gm.data.batches import PICTURE_FIELDS
from gm.training import gradients
from gm.training.adamw import AdamW
from gm.training.ema import EMA
from gm.training.loss import BATCH_FIELDS, DiffusionLoss


class Update(nn.Cell):
    """Clip, optimize and average, unless loss or gradients are not finite: then nothing changes.

    ``construct(gradients, loss, lr)`` returns the gradients' global norm before clipping.
    """

    def __init__(self, optimizer: AdamW, max_grad_norm: float | None, ema: EMA | None):
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm
        self.ema = ema
        self.none = Tensor(0.0, ms.float32)

    def construct(self, grads: tuple[Tensor, ...], loss: Tensor, lr: Tensor) -> Tensor:
        norm = gradients.global_norm(grads)
        updates = self.none
        if ops.isfinite(norm + loss):
            if self.max_grad_norm is not None:
                grads = gradients.scale(grads, gradients.clip_factor(norm, self.max_grad_norm))
            updates = self.optimizer(grads, lr)
            if self.ema is not None:
                self.ema(updates - 1.0)
        # Where the gradients are Parameters, MindSpore drops a branch whose result nothing depends on.
        return ops.depend(norm, updates)


class TrainStep(Graph):
    """One batch, one update.

    ``construct(lr, *batch)``: a float32 scalar tensor, and the fields of a batch in the order of ``loss``. The learning
    rate is an input, so a schedule never compiles anew. Returns float32 scalars: the weighted loss, the plain loss and
    the gradients' global norm. When the loss or the norm is not finite, no weight and no state has changed.
    """

    def __init__(
        self,
        loss: DiffusionLoss,
        optimizer: AdamW,
        max_grad_norm: float | None = None,
        ema: EMA | None = None,
    ):
        super().__init__(auto_prefix=False)
        self.loss = loss
        self.update = Update(optimizer, max_grad_norm, ema)
        self.loss_and_gradients = ops.value_and_grad(loss, None, optimizer.trained, has_aux=True)

    def construct(self, lr: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (loss, raw_loss), grads = self.loss_and_gradients(*batch)
        return loss, raw_loss, self.update(grads, loss, lr)

    def take(self, parts: Sequence[tuple[Tensor, ...]], lr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Update with the one batch in ``parts``."""
        (batch,) = parts
        return self(lr, *batch)


class Gather(Graph):
    """Adds ``share`` of a batch's gradients to ``sums``; returns that share of its weighted and its plain loss."""

    def __init__(self, loss: DiffusionLoss, trained: ParameterTuple, sums: ParameterTuple, share: float):
        super().__init__(auto_prefix=False)
        self.sums, self.share = sums, Tensor(share, ms.float32)
        self.loss_and_gradients = ops.value_and_grad(loss, None, trained, has_aux=True)

    def construct(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        (loss, raw_loss), grads = self.loss_and_gradients(*batch)
        gradients.add(self.sums, grads, self.share)
        return loss * self.share, raw_loss * self.share


class Apply(Graph):
    """Updates with the summed gradients and starts the sums anew; returns the gradients' global norm."""

    def __init__(self, update: Update, sums: ParameterTuple):
        super().__init__(auto_prefix=False)
        self.update, self.sums = update, sums

    def construct(self, loss: Tensor, lr: Tensor) -> Tensor:
        norm = self.update(self.sums, loss, lr)
        gradients.clear(self.sums)
        return norm


class AccumulatingStep:
    """Several batches, one update: what ``TrainStep`` does with one batch of all their samples."""

    def __init__(
        self, loss: DiffusionLoss, optimizer: AdamW, max_grad_norm: float | None, ema: EMA | None, batches: int
    ):
        sums = optimizer.trained.clone(prefix="gradient", init="zeros")
        self.gather = Gather(loss, optimizer.trained, sums, 1.0 / batches)
        self.apply = Apply(Update(optimizer, max_grad_norm, ema), sums)

    def set_train(self) -> None:
        self.gather.set_train()
        self.apply.set_train()

    def take(self, parts: Sequence[tuple[Tensor, ...]], lr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Update with the batches in ``parts``; returns what ``TrainStep`` does."""
        losses, raw_losses = zip(*(self.gather(*batch) for batch in parts))
        loss = sum(losses)
        return loss, sum(raw_losses), self.apply(loss, lr)


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
