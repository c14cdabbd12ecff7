"""The evaluation loss of any checkpoint. What it is and how it is measured: ``gm.training.eval_loss``."""

import copy
from pathlib import Path

from gm.config import Config
from gm.data.encoders import NetworkEncoders
from gm.data.tokens import Tokenizers
from gm.training.assemble import build_loss, load_unet
from gm.training.eval_loss import EvalLoss, Evaluation, grid, held_out


def evaluate(config: Config, unet: str | Path | None = None) -> Evaluation:
    """Measure ``config.model.weight`` on the pictures of ``config.validation.eval_data_path``.

    The result is comparable with what a training with the same settings logs.

    Args:
        unet: a file to take the UNet from, such as a run's ``unet_N.ckpt``; the rest stays that of ``model.weight``.

    Raises:
        SuiteError: weights or pictures that are missing or do not fit.
    """
    of_unet = copy.deepcopy(config)
    of_unet.model.weight = str(unet or config.model.weight)
    architecture, network = load_unet(of_unet)
    tokenizers = Tokenizers.of(config.model)
    batches = held_out(config, NetworkEncoders(config), tokenizers)
    return EvalLoss(build_loss(architecture, network), batches, config.diffusion, grid(config)).measure()
