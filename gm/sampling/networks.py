"""The networks a picture passes through, compiled, with numpy arrays in and out."""

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
from gm.weights.files import open_weights
from gm.weights.load import load_into

MERGE_TOOL = "tools/weight_merge/merge_weight.py"


class _GuidedUNet(Graph):
    """The UNet on ``copies`` of each latent in one call, so that guidance costs one graph and one launch a step.

    ``construct(latents (B, 4, h, w), timestep (1,), context (copies * B, 77, C), pooled, time_ids)`` returns
    (copies * B, 4, h, w). Without ``with_vector`` the UNet has no input for the last two.
    """

    def __init__(self, unet: UNet, copies: int, with_vector: bool):
        super().__init__(auto_prefix=False)
        self.unet = unet
        self.copies = copies
        self.with_vector = with_vector

    def construct(self, latents: Tensor, timestep: Tensor, context: Tensor, pooled: Tensor, time_ids: Tensor) -> Tensor:
        latents = ops.concat((latents,) * self.copies) if self.copies > 1 else latents
        timesteps = ops.broadcast_to(timestep, (latents.shape[0],))
        vector = None
        if self.with_vector:
            vector = conditioning_vector(pooled, time_ids)
        return self.unet(latents, timesteps, context, vector)


class Networks:
    """UNet, autoencoder and text towers of one architecture; each compiles once for every shape it meets."""

    def __init__(
        self, architecture: ModelArchitecture, unet: UNet, autoencoder: Autoencoder, conditioner: TextConditioner
    ):
        self.architecture = architecture
        self.scale_factor = architecture.autoencoder.scale_factor
        self.latent_channels = architecture.autoencoder.latent_channels
        self.downsampling = architecture.autoencoder.downsampling
        with_vector = architecture.unet.vector_dim is not None
        self._guided = {copies: _GuidedUNet(unet, copies, with_vector).set_train(False) for copies in (1, 2)}
        self._decoder = AutoencoderDecoder(autoencoder).set_train(False)
        self._encoder = AutoencoderEncoder(autoencoder).set_train(False)
        self._conditioner = conditioner.set_train(False)

    def encode_text(self, *ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (B, 77) int32 for each text encoder -> context (B, 77, C), pooled (B, P), or (B, 0) without it."""
        return self._conditioner.encode(ids)

    def forget_text_encoders(self) -> None:
        """Give their memory back; ``encode_text`` is of no use from here on."""
        self._conditioner = None

    def denoiser(self, context: np.ndarray, pooled: np.ndarray, time_ids: np.ndarray, copies: int) -> "Denoiser":
        """``predict(latents (B, 4, h, w), timestep) -> (copies * B, 4, h, w)`` for conditions of copies * B rows."""
        cell = self._guided[copies]
        conditions = [Tensor(np.ascontiguousarray(array, np.float32)) for array in (context, pooled, time_ids)]

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
        filled = [build_autoencoder(architecture.autoencoder), build_conditioner(architecture)]
        if unet is None:
            unet = build_unet(architecture.unet)
            set_precision(unet, precision, param_fp16)
            filled.append(unet)
        for network in filled:
            load_into(network, weights)
    autoencoder, conditioner = filled[:2]
    return Networks(architecture, unet, autoencoder, conditioner)
