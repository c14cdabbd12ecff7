"""Prompts in, pictures out: the sampling loop of one expert or two, and the autoencoder around it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from gm.diffusion.denoiser import Model, Predicts, initial_latents
from gm.diffusion.samplers import find_sampler
from gm.diffusion.steps import Steps, add_noise, handover
from gm.errors import UsageError
from gm.sampling.expert import Expert, Tokenize
from gm.sampling.noise import PictureNoise
from gm.sampling.settings import Request, Settings, plan_steps
from gm.sampling.tiling import tiled

if TYPE_CHECKING:
    from gm.sampling.networks import Networks


@dataclass(frozen=True)
class Drawn:
    """A picture and its final latents (4, h, w) float32, before the autoencoder."""

    picture: Image.Image
    latents: np.ndarray


class Pipeline:
    """A model ready to draw. ``alphas_cumprod`` (T,) and ``prediction_type`` must be those it was trained with.

    ``second`` takes over from it at ``settings.denoising_end``, in the middle of the same run: no noise is added, and a
    sampler that remembers earlier steps goes on remembering them. The autoencoder is the first's. With ``weighted``,
    brackets in a prompt are weights (``gm.sampling.emphasis``).
    """

    def __init__(
        self,
        networks: "Networks",
        tokenizers: Tokenize,
        alphas_cumprod: np.ndarray,
        prediction_type: str = "epsilon",
        second: Expert | None = None,
        weighted: bool = False,
    ):
        self.networks, self.alphas_cumprod = networks, alphas_cumprod
        self.first = Expert(networks, tokenizers, alphas_cumprod, prediction_type, weighted=weighted)
        self.second = second

    @classmethod
    def from_weights(
        cls,
        path: str | Path,
        tokenizers: Tokenize,
        alphas_cumprod: np.ndarray,
        prediction_type: str = "epsilon",
        precision: str = "fp32",
        param_fp16: bool = False,
        weighted: bool = False,
    ) -> "Pipeline":
        """From a full checkpoint: ``.ckpt``, ``.safetensors`` or a diffusers folder.

        Raises:
            SuiteError: the file is missing, damaged, or lacks a network.
        """
        from gm.sampling.networks import load_networks

        networks = load_networks(path, None, precision, param_fp16)
        return cls(networks, tokenizers, alphas_cumprod, prediction_type, weighted=weighted)

    @property
    def experts(self) -> tuple[Expert, ...]:
        """Those that draw."""
        return (self.first,) if self.second is None else (self.first, self.second)

    def sample(
        self,
        requests: Sequence[Request],
        settings: Settings,
        batch_size: int = 1,
        noise: np.ndarray | None = None,
        picture: Image.Image | None = None,
        on_step: Callable[[], None] | None = None,
    ) -> Iterator[Drawn]:
        """Draw the requests in order, ``batch_size`` at a time; the last batch is filled up, so one graph serves all.

        Args:
            noise: initial unit noise (N, 4, h, w) in place of the seeds', one for each request or one for all; with
                ``settings.denoising_start`` latents that are partly drawn, of unit variance, as they are.
            picture: img2img starts from it, at ``settings.strength``.
            on_step: called after every step of a batch.

        Raises:
            UsageError: settings that cannot work, before anything is computed.
        """
        steps, shape = self.check(settings)
        if noise is not None:
            noise = _checked_noise(noise, len(requests), shape)
        elif settings.denoising_start is not None:
            raise UsageError("--denoising_start goes on with latents: name them with --init_latent_path")
        self.encode_texts(requests, batch_size)
        start = None if picture is None else self._encode_picture(picture, settings)
        return self._draw_all(requests, settings, steps, shape, batch_size, noise, start, on_step)

    def check(self, settings: Settings) -> tuple[Steps, tuple[int, int, int]]:
        """The steps and the shape of latents (4, h, w) these settings ask for.

        Raises:
            UsageError: they cannot work, with the remedy.
        """
        scale = self.networks.downsampling
        for name, size in (("height", settings.height), ("width", settings.width)):
            if size % scale or size < scale:
                nearest = max(round(size / scale), 1) * scale
                raise UsageError(f"--{name} {size} is not a multiple of {scale}: use {nearest}")
        if self.second is not None and settings.denoising_end is None:
            raise UsageError("two stages need --denoising_end, the first one's share of the schedule: 0.65 or so")
        shape = (self.networks.latent_channels, settings.height // scale, settings.width // scale)
        return plan_steps(settings, self.alphas_cumprod, self.second is not None), shape

    def _draw_all(
        self,
        requests: Sequence[Request],
        settings: Settings,
        steps: Steps,
        shape: tuple[int, int, int],
        batch_size: int,
        noise: np.ndarray | None,
        start: np.ndarray | None,
        on_step: Callable[[], None] | None,
    ) -> Iterator[Drawn]:
        for first in range(0, len(requests), batch_size):
            # the last request fills the last batch up
            chosen = [min(first + offset, len(requests) - 1) for offset in range(batch_size)]
            batch = [requests[index] for index in chosen]
            draw = PictureNoise([request.seed for request in batch], shape)
            seeded = draw()
            initial = seeded if noise is None else noise[chosen]
            if settings.denoising_start is not None:
                latents = initial
            elif start is None:
                latents = initial_latents(initial, steps)
            else:
                mean, log_variance = np.split(start, 2, axis=1)
                encoded = (mean + np.exp(0.5 * np.clip(log_variance, -30, 20)) * draw()) * self.networks.scale_factor
                latents = add_noise(encoded.astype(np.float32), initial, steps.alphas_cumprod[0])
            model, predicts = self._model(batch, settings)
            latents = find_sampler(settings.sampler).sample(
                model,
                latents,
                steps,
                predicts,
                draw,
                (lambda index, denoised: on_step()) if on_step else None,
            )
            pictures = to_pictures(self._decode(latents, settings.tile))
            for index in range(min(batch_size, len(requests) - first)):
                yield Drawn(pictures[index], latents[index])

    def encode_texts(self, requests: Sequence[Request], batch_size: int) -> None:
        """Encode what the requests need and was not encoded yet, each text once, in batches of one shape."""
        for expert in self.experts:
            expert.encode_texts(requests, batch_size)

    def _model(self, batch: Sequence[Request], settings: Settings) -> tuple[Model, Predicts]:
        """The network as the samplers want it, and what it predicts; each of two answers for its own noise levels."""
        first = self.first.model(batch, settings)
        if self.second is None:
            return first, self.first.prediction_type
        second = self.second.model(batch, settings)
        boundary = handover(settings.denoising_end, len(self.alphas_cumprod))

        def model(latents: np.ndarray, timestep: float) -> np.ndarray:
            if timestep >= boundary:
                return first(latents, timestep)
            return second(latents, self.second.own_timestep(timestep, self.alphas_cumprod))

        def predicts(timestep: float) -> str:
            return (self.first if timestep >= boundary else self.second).prediction_type

        return model, predicts

    def _encode_picture(self, picture: Image.Image, settings: Settings) -> np.ndarray:
        resized = picture.convert("RGB").resize((settings.width, settings.height), Image.Resampling.LANCZOS)
        pixels = np.asarray(resized, np.float32).transpose(2, 0, 1)[None] / 127.5 - 1.0
        if settings.tile is None:
            return self.networks.encode(pixels)
        return tiled(self.networks.encode, pixels, settings.tile)

    def _decode(self, latents: np.ndarray, tile: int | None) -> np.ndarray:
        if tile is None:
            return self.networks.decode(latents)
        return tiled(self.networks.decode, latents, tile // self.networks.downsampling)


def to_pictures(pixels: np.ndarray) -> list[Image.Image]:
    """Network output (B, 3, H, W), about [-1, 1], as RGB pictures."""
    pixels = np.clip(pixels.astype(np.float32) / 2 + 0.5, 0, 1).transpose(0, 2, 3, 1)
    return [Image.fromarray(np.round(one * 255).astype(np.uint8)) for one in pixels]


def _checked_noise(noise: np.ndarray, count: int, shape: tuple[int, ...]) -> np.ndarray:
    if noise.ndim != 4 or noise.shape[1:] != shape or noise.shape[0] not in (1, count):
        raise UsageError(
            f"the initial latents have shape {tuple(noise.shape)}: {(count, *shape)} is needed here, or one for all"
        )
    return np.broadcast_to(noise.astype(np.float32), (count, *shape))
