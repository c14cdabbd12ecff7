"""Networks from architectures, with the parameter names of the original checkpoints."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from mindspore import nn
from mindspore.nn.utils import no_init_parameters

from gm.models.architecture import (
    AUTOENCODER,
    UNET,
    AutoencoderArchitecture,
    CLIPArchitecture,
    ModelArchitecture,
    UNetArchitecture,
)
from gm.models.autoencoder import Autoencoder
from gm.models.clip import CLIP
from gm.models.conditioner import TextConditioner
from gm.models.layers import Initializer, Purpose
from gm.models.unet import UNet

Network = TypeVar("Network", bound=nn.Cell)


def _named(build: Callable[[], Network], prefix: str, seed: int | None, inference: bool = False) -> Network:
    Initializer.current = None if seed is None else np.random.default_rng(seed)
    Purpose.inference = inference
    try:
        with no_init_parameters():  # concerns zeros only: drawn values exist
            network = build()
    finally:
        Initializer.current, Purpose.inference = None, False
    for name, parameter in network.parameters_and_names():
        parameter.name = prefix + name
    network.set_train(False)
    return network


def build_unet(architecture: UNetArchitecture, seed: int | None = None, inference: bool = False) -> UNet:
    """The UNet; with no ``seed`` its weights are zeros without memory that wait for a file.

    For ``inference`` alone, without gradients, some layers are others, which compute the same faster.
    """
    unet = _named(lambda: UNet(architecture), UNET, seed, inference)
    if architecture.guidance_dim is not None:  # in its keys it stands in a list of layers that have numbers
        unet.guidance_projection.weight.name = f"{UNET}time_embed.cond_proj.weight"
    return unet


def build_autoencoder(
    architecture: AutoencoderArchitecture, seed: int | None = None, inference: bool = False
) -> Autoencoder:
    """The autoencoder; ``seed`` and ``inference`` as in ``build_unet``."""
    return _named(lambda: Autoencoder(architecture), AUTOENCODER, seed, inference)


def build_conditioner(architecture: ModelArchitecture, seed: int | None = None) -> TextConditioner:
    """The text towers; with no ``seed`` their weights are zeros without memory that wait for a file."""
    conditioner = _named(lambda: TextConditioner(architecture.text_encoders), "", seed)
    for prefix, embedder in zip(architecture.text_prefixes, conditioner.embedders):
        for name, parameter in embedder.parameters_and_names():
            parameter.name = prefix + name
    return conditioner


def build_clip(architecture: CLIPArchitecture, seed: int | None = None) -> CLIP:
    """A whole CLIP; with no ``seed`` its weights are zeros without memory that wait for a file."""
    return _named(lambda: CLIP(architecture), "", seed)
