"""The networks a picture passes through, compiled, with numpy arrays in and out."""

from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from mindspore import Tensor, ops

from gm.compilation import Graph
from gm.errors import SuiteError
from gm.models.architecture import ModelArchitecture
from gm.models.autoencoder import Autoencoder, AutoencoderDecoder, AutoencoderEncoder
from gm.models.build import build_autoencoder, build_conditioner, build_unet
from gm.models.conditioner import TextConditioner, conditioning_vector
from gm.models.precision import set_precision
from gm.models.unet import UNet
from gm.weights.files import WeightFile, open_weights
from gm.weights.load import load_into

MERGE_TOOL = "tools/weight_merge/merge_weight.py"


class _Conditions(Graph):
    """What the UNet makes of the conditions alone, once for all steps of a batch.

    ``construct(context (B, 77, C), pooled, time_ids, guidance (B, G))`` returns the keys and values of all its blocks,
    and after them what it is told, of which a UNet has none, one or both: its vector and the guidance scale. Where it
    has no input for them, ``pooled`` and ``guidance`` are not looked at.
    """

    def __init__(self, unet: UNet):
        super().__init__(auto_prefix=False)
        self.unet = unet
        self.with_vector = unet.arch.vector_dim is not None
        self.with_guidance = unet.arch.guidance_dim is not None

    def construct(self, context: Tensor, pooled: Tensor, time_ids: Tensor, guidance: Tensor) -> tuple[Tensor, ...]:
        vector = conditioning_vector(pooled, time_ids) if self.with_vector else None
        label, scale = self.unet.told(vector, guidance if self.with_guidance else None)
        told = ()
        if self.with_vector:
            told = told + (label,)
        if self.with_guidance:
            told = told + (scale,)
        return self.unet.states(context) + told


class _GuidedUNet(Graph):
    """The UNet on ``copies`` of each latent in one call, so that guidance costs one graph and one launch a step.

    ``construct(latents (B, 4, h, w), timestep (1,), *conditions)`` with the ``_Conditions`` of copies * B rows returns
    (copies * B, 4, h, w).
    """

    def __init__(self, unet: UNet, copies: int):
        super().__init__(auto_prefix=False)
        self.unet = unet
        self.copies = copies
        self.states = unet.places[-1][1]
        self.with_vector = unet.arch.vector_dim is not None
        self.with_guidance = unet.arch.guidance_dim is not None

    def construct(self, latents: Tensor, timestep: Tensor, *conditions: Tensor) -> Tensor:
        latents = ops.concat((latents,) * self.copies) if self.copies > 1 else latents
        timesteps = ops.broadcast_to(timestep, (latents.shape[0],))
        label = conditions[self.states] if self.with_vector else None
        guidance = conditions[len(conditions) - 1] if self.with_guidance else None
        return self.unet.denoise(latents, timesteps, conditions[: self.states], label, guidance)


class Networks:
    """UNet, autoencoder and text towers of one architecture; each compiles once for every shape it meets.

    A second stage has no use for an autoencoder, and may share the first one's text states.
    """

    def __init__(
        self,
        architecture: ModelArchitecture,
        unet: UNet,
        autoencoder: Autoencoder | None,
        conditioner: TextConditioner | None,
    ):
        self.architecture = architecture
        self.scale_factor = architecture.latent_scale
        if autoencoder is not None:
            self.latent_channels = architecture.autoencoder.latent_channels
            self.downsampling = architecture.autoencoder.downsampling
            self._decoder = AutoencoderDecoder(autoencoder).set_train(False)
            self._encoder = AutoencoderEncoder(autoencoder).set_train(False)
        self._conditions = _Conditions(unet).set_train(False)
        self._guided = {copies: _GuidedUNet(unet, copies).set_train(False) for copies in (1, 2)}
        self._conditioner = conditioner and conditioner.set_train(False)

    @property
    def has_text_encoders(self) -> bool:
        return self._conditioner is not None

    def encode_text(self, *ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (B, 77) int32 for each text encoder -> context (B, 77, C), pooled (B, P), or (B, 0) without it."""
        return self._conditioner.encode(ids)

    def forget_text_encoders(self) -> None:
        """Give their memory back; ``encode_text`` is of no use from here on."""
        self._conditioner = None

    def denoiser(
        self,
        context: np.ndarray,
        pooled: np.ndarray,
        time_ids: np.ndarray,
        copies: int,
        guidance: np.ndarray | None = None,
    ) -> "Denoiser":
        """``predict(latents (B, 4, h, w), timestep) -> (copies * B, 4, h, w)`` for conditions of copies * B rows.

        ``guidance`` (copies * B, G): the embedded guidance scale, for a UNet that is told it. What follows from the
        conditions alone is computed here, with the weights as they are now.
        """
        cell = self._guided[copies]
        told = np.zeros((len(context), 0)) if guidance is None else guidance
        given = [Tensor(np.ascontiguousarray(array, np.float32)) for array in (context, pooled, time_ids, told)]
        conditions = self._conditions(*given)

        def predict(latents: np.ndarray, timestep: float) -> np.ndarray:
            return cell(Tensor(latents), Tensor(np.array([timestep], np.float32)), *conditions).asnumpy()

        return predict

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Latents (B, 4, h, w) as the UNet has them -> pictures (B, 3, H, W), about [-1, 1]."""
        return self._decoder(Tensor((latents / self.scale_factor).astype(np.float32))).asnumpy()

    def encode(self, pictures: np.ndarray) -> np.ndarray:
        """Pictures (B, 3, H, W) in [-1, 1] -> posterior moments (B, 8, h, w): means, then log-variances."""
        return self._encoder(Tensor(np.ascontiguousarray(pictures, np.float32))).asnumpy()


class Denoiser(Protocol):
    def __call__(self, latents: np.ndarray, timestep: float) -> np.ndarray: ...


def load_networks(
    path: str | Path, unet: UNet | None = None, precision: str = "fp32", param_fp16: bool = False
) -> Networks:
    """Build what the weights say they are, and fill it; with ``unet``, around that one as it is.

    ``precision`` and ``param_fp16`` are of a UNet that is built; the other networks are float32.

    Raises:
        SuiteError: no such file, a damaged one, or one that lacks a network.
    """
    with open_weights(path) as weights:
        architecture = weights.architecture()
        parts = {
            "UNet": architecture.unet,
            "autoencoder": architecture.autoencoder,
            "text encoders": architecture.text_encoders,
        }
        missing = [name for name, part in parts.items() if not part]
        if missing:
            raise SuiteError(
                f"{path} has no {' and no '.join(missing)}: pictures need the whole model; put the trained UNet into "
                f"the weights it was trained from with {MERGE_TOOL} and sample from the result"
            )
        autoencoder = build_autoencoder(architecture.autoencoder, inference=True)
        conditioner = build_conditioner(architecture)
        for network in (autoencoder, conditioner):
            load_into(network, weights)
        return Networks(architecture, unet or _unet(weights, precision, param_fp16), autoencoder, conditioner)


def load_second_stage(
    path: str | Path, first: ModelArchitecture, precision: str = "fp32", param_fp16: bool = False
) -> Networks:
    """UNet and text encoders of a model that goes on where ``first`` stops; or a UNet alone that knows its text states.

    Raises:
        SuiteError: no such file, a damaged one, or a model that cannot read what the first leaves.
    """
    with open_weights(path) as weights:
        architecture = weights.architecture()
        _check_second_stage(path, architecture, first)
        if not architecture.text_encoders:
            architecture = replace(first, unet=architecture.unet)
            conditioner = None
        else:
            conditioner = build_conditioner(architecture)
            load_into(conditioner, weights)
        return Networks(architecture, _unet(weights, precision, param_fp16), None, conditioner)


def _unet(weights: WeightFile, precision: str, param_fp16: bool) -> UNet:
    unet = build_unet(weights.architecture().unet, inference=True)
    set_precision(unet, precision, param_fp16)
    load_into(unet, weights)
    return unet


def _check_second_stage(path: str | Path, second: ModelArchitecture, first: ModelArchitecture) -> None:
    if second.unet is None:
        raise SuiteError(f"{path} has no UNet: --stage2_weight takes a model, or a trained UNet")
    ours, theirs = ((model.unet.in_channels, model.latent_scale) for model in (first, second))
    if ours != theirs:
        raise SuiteError(
            f"{path} draws latents of {theirs[0]} channels scaled by {theirs[1]}, the first stage latents of {ours[0]} "
            f"scaled by {ours[1]}: two stages must be of one family"
        )
    conditions = [(model.unet.context_dim, model.unet.vector_dim) for model in (first, second)]
    if not second.text_encoders and conditions[0] != conditions[1]:
        raise SuiteError(
            f"{path} has no text encoders, and its UNet does not fit those of the first stage: put it into the weights "
            f"it was trained from with {MERGE_TOOL}"
        )
