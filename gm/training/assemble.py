"""From a configuration to the parts of a run: the network and the compiled step around it."""

from dataclasses import dataclass

from mindspore import Parameter, nn

from gm.config import Config
from gm.config.sections.training import OptimConfig
from gm.data.encoders import NetworkEncoders
from gm.errors import SuiteError
from gm.models.architecture import UNTRAINED, ModelArchitecture
from gm.models.build import build_unet
from gm.models.precision import set_precision
from gm.models.recompute import recompute
from gm.models.unet import UNet
from gm.training.adafactor import Adafactor
from gm.training.adamw import AdamW
from gm.training.ema import EMA
from gm.training.lion import Lion
from gm.training.loss import DiffusionLoss
from gm.training.online import PictureLoss
from gm.training.optimizer import Optimizer
from gm.training.scaler import LossScale
from gm.training.step import AccumulatingStep, TrainStep
from gm.weights.files import open_weights
from gm.weights.load import load_into


def load_unet(config: Config) -> tuple[ModelArchitecture, UNet]:
    """The UNet of the weights file, or an untrained one of ``model.architecture``; in the precision of ``launch``."""
    if not config.model.weight:
        architecture = UNTRAINED[config.model.architecture]
        unet = build_unet(architecture.unet, seed=config.train.seed)
        set_precision(unet, config.launch.precision, config.launch.param_fp16)
        return architecture, unet
    with open_weights(config.model.weight) as weights:
        architecture = weights.architecture()
        if architecture.unet is None:
            raise SuiteError(f"{config.model.weight} has no UNet to train: it is {weights.describe()}")
        unet = build_unet(architecture.unet)
        set_precision(unet, config.launch.precision, config.launch.param_fp16)
        load_into(unet, weights)
    return architecture, unet


@dataclass
class Parts:
    """What a run trains and with what: the ``weights`` it saves, optimizer, loss scale, average, loss, and the step.

    ``loss`` is what an evaluation goes by: of latents, or of pictures if the text encoders are trained.
    """

    weights: list[Parameter]
    optimizer: Optimizer
    scaler: LossScale | None
    ema: EMA | None
    loss: DiffusionLoss | PictureLoss
    step: TrainStep | AccumulatingStep

    @property
    def state(self) -> list[Parameter]:
        """Everything but weights and averages that an exact resume has to restore."""
        return self.optimizer.state + (self.scaler.state if self.scaler else [])

    @property
    def graphs(self) -> list[nn.Cell]:
        """The Cells of the step that are compiled."""
        return [self.step] if isinstance(self.step, nn.Cell) else [self.step.gather, self.step.apply]


def build_loss(architecture: ModelArchitecture, unet: UNet) -> DiffusionLoss:
    """The loss of a model with this UNet."""
    return DiffusionLoss(unet, architecture.latent_scale, with_vector=architecture.unet.vector_dim is not None)


def trained_params(config: Config, unet: UNet, encoders: NetworkEncoders | None) -> list[Parameter]:
    """What the optimizer changes: the UNet and, if they are trained too, what of the text encoders has a say."""
    return unet.trainable_params() + (encoders.conditioner.used_params() if config.train.text_encoders else [])


def assemble(
    config: Config, architecture: ModelArchitecture, unet: UNet, encoders: NetworkEncoders | None = None
) -> Parts:
    """The training step of a configuration around a UNet; with ``encoders`` it takes pictures and encodes them."""
    recompute(unet, config.train.recompute)
    optim, launch = config.optim, config.launch
    weights = unet.trainable_params()
    if config.train.text_encoders:
        recompute(encoders.conditioner, config.train.recompute)
        weights += encoders.conditioner.get_parameters()
    optimizer = build_optimizer(optim, trained_params(config, unet, encoders))
    # Where gradients pass through float16, small ones vanish without a loss scale.
    narrow = launch.precision == "fp16" or launch.param_fp16
    scaler = LossScale(launch.init_loss_scale, launch.loss_scale_window) if narrow else None
    ema = None
    if optim.use_ema:
        ema = EMA(weights, optim.ema_decay, optim.ema_update_interval, optimizer.wide(weights))
    loss = build_loss(architecture, unet)
    of_pictures = loss
    if encoders is not None:
        of_pictures = PictureLoss(loss, encoders.autoencoder, encoders.conditioner, config.train.text_encoders)
    max_norm = optim.max_grad_norm if optim.clip_grad else None
    if optim.gradient_accumulation_steps == 1:
        step = TrainStep(of_pictures, optimizer, max_norm, ema, scaler)
    else:
        step = AccumulatingStep(of_pictures, optimizer, max_norm, ema, optim.gradient_accumulation_steps, scaler)
    return Parts(weights, optimizer, scaler, ema, of_pictures if config.train.text_encoders else loss, step)


def build_optimizer(optim: OptimConfig, trained: list[Parameter]) -> Optimizer:
    """The optimizer of a configuration."""
    if optim.optimizer == "adafactor":
        return Adafactor(trained, optim.weight_decay, optim.relative_step)
    if optim.optimizer == "lion":
        return Lion(trained, optim.beta1, 0.99 if optim.beta2 is None else optim.beta2, optim.weight_decay)
    beta2 = 0.999 if optim.beta2 is None else optim.beta2
    return AdamW(trained, optim.beta1, beta2, optim.epsilon, optim.weight_decay)
