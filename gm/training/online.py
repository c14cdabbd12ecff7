"""The loss from pictures and captions: the networks before the UNet in one graph with it."""

from mindspore import Tensor, nn, ops

from gm.models.autoencoder import Autoencoder
from gm.models.conditioner import TextConditioner
from gm.training.loss import DiffusionLoss


class PictureLoss(nn.Cell):
    """``DiffusionLoss`` of what autoencoder and text towers make of a batch.

    ``construct`` takes the fields of ``gm.data.batches.PICTURE_FIELDS`` in that order. The autoencoder stays as it is;
    the text towers are trained with ``train_text``. Returns what ``DiffusionLoss`` does.
    """

    def __init__(
        self, loss: DiffusionLoss, autoencoder: Autoencoder, conditioner: TextConditioner, train_text: bool = False
    ):
        super().__init__(auto_prefix=False)
        self.loss = loss
        self.autoencoder = autoencoder
        self.conditioner = conditioner
        self.train_text = train_text

    def construct(
        self,
        pictures: Tensor,
        posterior_noise: Tensor,
        noise: Tensor,
        input_noise: Tensor,
        ids: Tensor,
        time_ids: Tensor,
        *numbers: Tensor,
    ) -> tuple[Tensor, Tensor]:
        moments = ops.stop_gradient(self.autoencoder.encode(pictures))
        states = self.conditioner(*ops.unstack(ids, axis=1))
        if not self.train_text:
            states = ops.stop_gradient(states)
        context, pooled = states[0], states[1] if len(states) > 1 else None
        return self.loss(moments, posterior_noise, noise, input_noise, context, pooled, time_ids, *numbers)
