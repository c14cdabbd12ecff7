"""From a configuration to the parts of a run: the network and the compiled step around it."""

from dataclasses import dataclass

from mindspore import Parameter, nn

from gm.config import Config
from gm.errors import SuiteError
from gm.models import architecture as architectures
from gm.models.build import build_unet
from gm.models.recompute import recompute
from gm.models.unet import UNet
from gm.training.adamw import AdamW
from gm.training.ema import EMA
from gm.training.loss import DiffusionLoss
from gm.training.step import AccumulatingStep, TrainStep
from gm.weights.files import open_weights
from gm.weights.load import load_into

# What --weight "" builds.
UNTRAINED = {"sdxl-base": architectures.ModelArchitecture(), "tiny": architectures.TINY_SDXL}


def load_unet(config: Config) -> tuple[architectures.ModelArchitecture, UNet]:
    """The UNet of the weights file, or an untrained one of ``model.architecture``."""
    if not config.model.weight:
        architecture = UNTRAINED[config.model.architecture]
        return architecture, build_unet(architecture.unet, seed=config.train.seed)
    with open_weights(config.model.weight) as weights:
        architecture = weights.architecture()
        if architecture.unet is None:
            raise SuiteError(f"{config.model.weight} has no UNet to train: it is {weights.describe()}")
        unet = build_unet(architecture.unet)
        load_into(unet, weights)
    return architecture, unet


@dataclass
class Parts:
    """What a run trains and with what: the ``weights``, optimizer, moving average, loss, and the step over all."""

    weights: list[Parameter]
    optimizer: AdamW
    ema: EMA | None
    loss: DiffusionLoss
    step: TrainStep | AccumulatingStep

    @property
    def state(self) -> list[Parameter]:
        """Everything but weights and averages that an exact resume has to restore."""
        return self.optimizer.state

    @property
    def graphs(self) -> list[nn.Cell]:
        """The Cells of the step that are compiled."""
        return [self.step] if isinstance(self.step, nn.Cell) else [self.step.gather, self.step.apply]


def build_loss(architecture: architectures.ModelArchitecture, unet: UNet) -> DiffusionLoss:
    """The loss of a model with this UNet."""
    return DiffusionLoss(unet, architecture.latent_scale, with_vector=architecture.unet.vector_dim is not None)


def assemble(config: Config, architecture: architectures.ModelArchitecture, unet: UNet) -> Parts:
    """The training step of a configuration around a UNet."""
    recompute(unet, config.train.recompute)
    optim = config.optim
    weights = unet.trainable_params()
    optimizer = AdamW(weights, optim.beta1, optim.beta2, optim.epsilon, optim.weight_decay)
    ema = EMA(weights, optim.ema_decay) if optim.use_ema else None
    loss = build_loss(architecture, unet)
    max_norm = optim.max_grad_norm if optim.clip_grad else None
    if optim.gradient_accumulation_steps == 1:
        step = TrainStep(loss, optimizer, max_norm, ema)
    else:
        step = AccumulatingStep(loss, optimizer, max_norm, ema, optim.gradient_accumulation_steps)
    return Parts(weights, optimizer, ema, loss, step)
