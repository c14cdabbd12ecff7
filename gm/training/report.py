"""What a run will do and take, told before its first step."""

import logging

from gm.config import Config
from gm.data.batches import Batches
from gm.data.noising import describe
from gm.models.unet import UNet

log = logging.getLogger(__name__)


def report(config: Config, unet: UNet, batches: Batches) -> None:
    """Say what will be trained, on what, and what it takes."""
    count = sum(parameter.size for parameter in unet.trainable_params())
    copies = 4 + config.optim.use_ema  # weights, gradients, two moments, the average
    samples = config.data.per_batch_size * config.optim.gradient_accumulation_steps
    epochs = config.train.max_train_steps / batches.steps_per_epoch
    sizes = ", ".join(f"{width}x{height}" for height, width in batches.sizes)
    log.info(
        "training %s parameters; they, their gradients and AdamW's state take %s",
        f"{count:,}",
        size(4 * count * copies),
    )
    log.info(
        "%d steps of %d samples: %.1f epochs of %d steps",
        config.train.max_train_steps,
        samples,
        epochs,
        batches.steps_per_epoch,
    )
    log.info("objective: %s", describe(config.diffusion))
    log.info("pictures of %s: %d compilation%s", sizes, len(batches.sizes), "s" * (len(batches.sizes) > 1))


def size(count: int) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
