"""The evaluation loss of any checkpoint. What it is and how it is measured: ``gm.training.eval_loss``."""

from collections.abc import Sequence

from gm.config import Config
from gm.data.encoders import NetworkEncoders
from gm.data.tokens import Tokenizers
from gm.evaluation.checkpoints import Checkpoint, Subject
from gm.training.assemble import build_loss
from gm.training.eval_loss import EvalLoss, Evaluation, grid, held_out


def eval_loss_of(config: Config, subject: Subject) -> EvalLoss:
    """What measures the weights that ``subject`` holds, on the pictures of ``config.validation.eval_data_path``.

    The values are comparable with what a training with the same settings logs.

    Raises:
        SuiteError: pictures that are missing or cannot be read.
    """
    batches = held_out(config, NetworkEncoders(config), Tokenizers.of(config.model))
    return EvalLoss(build_loss(subject.architecture, subject.unet), batches, config.diffusion, grid(config))


def evaluate(config: Config, checkpoints: Sequence[Checkpoint]) -> list[Evaluation]:
    """Measure the UNet of each checkpoint; the rest is that of ``config.model.weight``.

    Raises:
        SuiteError: weights or pictures that are missing or do not fit.
    """
    subject = Subject(config)
    loss = eval_loss_of(config, subject)
    found = []
    for checkpoint in checkpoints:
        subject.hold(checkpoint.path)
        found.append(loss.measure())
    return found
