"""From a configuration to the parts of a run: the network and the compiled step around it."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

from mindspore import Parameter, nn

from gm.config import Config
from gm.config.sections.training import OptimConfig
from gm.data.encoders import NetworkEncoders
from gm.errors import SuiteError
from gm.models.architecture import UNTRAINED, ModelArchitecture
from gm.models.build import build_unet
from gm.models.divided import divide
from gm.models.layers import generalize
from gm.models.precision import set_precision
from gm.models.recompute import recompute
from gm.models.unet import UNet
from gm.parallel.whole import share_out
from gm.parallel.world import World
from gm.training.adafactor import Adafactor
from gm.training.adamw import AdamW
from gm.training.ema import EMA, in_place_of
from gm.training.exchange import Exchange
from gm.training.lion import Lion
from gm.training.loss import DiffusionLoss
from gm.training.online import PictureLoss
from gm.training.optimizer import Optimizer
from gm.training.scaler import LossScale
from gm.training.sharing import Layout, SharedOptimizer, SharingExchange, lay_out, shares
from gm.training.slices import Slices
from gm.training.state import Contents
from gm.training.step import AccumulatingStep, TrainStep
from gm.weights.files import open_weights
from gm.weights.load import load_into


def load_unet(config: Config) -> tuple[ModelArchitecture, UNet]:
    """The UNet of the weights file, or an untrained one of ``model.architecture``; in the precision of ``launch``."""
    architecture = architecture_to_train(config)
    if not config.model.weight:
        unet = build_unet(architecture.unet, seed=config.train.seed)
        set_precision(unet, config.launch.precision, config.launch.param_fp16)
        return architecture, unet
    with open_weights(config.model.weight) as weights:
        unet = build_unet(architecture.unet)
        set_precision(unet, config.launch.precision, config.launch.param_fp16)
        load_into(unet, weights)
    return architecture, unet


def architecture_to_train(config: Config) -> ModelArchitecture:
    """Which model ``load_unet`` would load."""
    if not config.model.weight:
        return UNTRAINED[config.model.architecture]
    with open_weights(config.model.weight) as weights:
        architecture = weights.architecture()
        if architecture.unet is None:
            raise SuiteError(f"{config.model.weight} has no UNet to train: it is {weights.describe()}")
    return architecture


@dataclass
class Parts:
    """What a run trains and with what: the ``weights`` it saves, optimizer, loss scale, average, loss, and the step.

    ``loss`` is what an evaluation goes by: of latents, or of pictures if the text encoders are trained. ``layout``: how
    weights and state are shared out with other devices, if they are; ``slices``: how axis tensor divides some of them.
    """

    weights: list[Parameter]
    optimizer: Optimizer | SharedOptimizer
    scaler: LossScale | None
    ema: EMA | None
    loss: DiffusionLoss | PictureLoss
    step: TrainStep | AccumulatingStep
    layout: Layout | None = None
    slices: Slices | None = None

    @property
    def state(self) -> list[Parameter]:
        """Everything but weights and averages that an exact resume has to restore."""
        return self.optimizer.state + (self.scaler.state if self.scaler else [])

    @property
    def contents(self) -> Contents:
        """What a checkpoint keeps of it."""
        averages = self.ema.state if self.ema else []
        if self.slices is not None:
            return Contents(self.weights, *self.slices.sort(self.weights, averages, self.state))
        if self.layout is None:
            return Contents(self.weights, averages, self.state)
        return Contents(self.weights, [], self.state, shares(self.layout, self.optimizer, averages))

    def averaged(self) -> AbstractContextManager:
        """A block in which the weights are their average; where there is none as a whole they stay what they are."""
        if self.ema is None or self.layout is not None:
            return nullcontext()
        return in_place_of(self.weights, self.ema.state)

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
    config: Config,
    architecture: ModelArchitecture,
    unet: UNet,
    encoders: NetworkEncoders | None = None,
    world: World | None = None,
) -> Parts:
    """The training step of a configuration around a UNet; with ``encoders`` it takes pictures and encodes them.

    In a ``world`` of several processes it is this one's part of it.
    """
    world = world or World()
    optim, launch, parallel = config.optim, config.launch, config.parallel
    networks = [unet, encoders.conditioner] if config.train.text_encoders else [unet]
    shards, kinds = {}, {}
    if world.mesh.degree("tensor") > 1:
        kinds = divide(unet, world.group("tensor"))
    for network in networks:
        recompute(network, config.train.recompute)
        if parallel.zero_stage == 3 and world.size > 1:
            generalize(network)
            shards |= share_out(network, world.group("fsdp"))
    weights = unet.trainable_params()
    if config.train.text_encoders:
        weights += encoders.conditioner.get_parameters()
    trained, layout = trained_params(config, unet, encoders), None
    if parallel.zero_stage and world.size > 1:
        layout = lay_out(trained, world, parallel.bucket_mb, shards)
        optimizer = SharedOptimizer(layout, world, partial(build_optimizer, optim))
    else:
        optimizer = build_optimizer(optim, trained)
    # Where gradients pass through float16, small ones vanish without a loss scale.
    narrow = launch.precision == "fp16" or launch.param_fp16
    scaler = LossScale(launch.init_loss_scale, launch.loss_scale_window) if narrow else None
    ema = None
    if optim.use_ema:
        averaged = weights if layout is None else [flat.parameter for flat in layout.flats]
        ema = EMA(averaged, optim.ema_decay, optim.ema_update_interval, optimizer.wide(averaged))
    loss = build_loss(architecture, unet)
    of_pictures = loss
    if encoders is not None:
        of_pictures = PictureLoss(loss, encoders.autoencoder, encoders.conditioner, config.train.text_encoders)
    max_norm = optim.max_grad_norm if optim.clip_grad else None
    exchange = None
    if layout is not None:
        exchange = SharingExchange(world, layout, parallel.bucket_mb, early=parallel.zero_stage > 1)
    elif world.size > 1:
        exchange = Exchange(world, optimizer.trained, parallel.bucket_mb, kinds)
    batches = optim.gradient_accumulation_steps
    if batches == 1:
        step = TrainStep(of_pictures, optimizer, max_norm, ema, scaler, exchange)
    else:
        step = AccumulatingStep(of_pictures, optimizer, max_norm, ema, batches, scaler, exchange)
    evaluated = of_pictures if config.train.text_encoders else loss
    slices = Slices(kinds, world.group("tensor"), world.mesh.index("data") == 0) if kinds else None
    return Parts(weights, optimizer, scaler, ema, evaluated, step, layout, slices)


def build_optimizer(optim: OptimConfig, trained: list[Parameter]) -> Optimizer:
    """The optimizer of a configuration."""
    if optim.optimizer == "adafactor":
        return Adafactor(trained, optim.weight_decay, optim.relative_step)
    if optim.optimizer == "lion":
        return Lion(trained, optim.beta1, 0.99 if optim.beta2 is None else optim.beta2, optim.weight_decay)
    beta2 = 0.999 if optim.beta2 is None else optim.beta2
    return AdamW(trained, optim.beta1, beta2, optim.epsilon, optim.weight_decay)
