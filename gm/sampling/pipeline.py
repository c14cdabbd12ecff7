"""Prompts in, pictures out: text states, the guided sampling loop, the autoencoder."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from gm.diffusion.denoiser import initial_latents
from gm.diffusion.guidance import classifier_free, rescale
from gm.diffusion.objective import check_prediction_type
from gm.diffusion.samplers import find_sampler
from gm.diffusion.steps import Steps, add_noise, inference_steps, skipped_steps
from gm.errors import UsageError
from gm.models.architecture import size_numbers
from gm.sampling.noise import PictureNoise
from gm.sampling.tiling import tiled

if TYPE_CHECKING:
    from gm.sampling.networks import Networks

TILED_ABOVE = 2**21  # pixels: --vae_tiling auto

UNCONDITIONALS = ("auto", "zeros", "empty", "dropout")


class Tokenize(Protocol):
    """``gm.data.tokens.Tokenizers``."""

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, ...]: ...


@dataclass(frozen=True)
class Request:
    """One picture to draw."""

    prompt: str
    seed: int
    negative_prompt: str = ""


@dataclass(frozen=True)
class Settings:
    """How to draw. Sizes in pixels; the numbers the model is told default to the picture's size.

    ``unconditional``: what guidance steers away from where no negative prompt is given: text states of ``zeros`` (how
    SDXL base was trained), the ``empty`` prompt (its refiner, SD 1.x, SD 2.x), or the empty prompt with all size
    numbers 0 (``dropout``: what ``--caption_dropout`` trains); ``auto`` is one of the first two.
    """

    sampler: str = "euler"
    sample_step: int = 40
    timestep_spacing: str = "leading"
    karras_sigmas: bool = False
    guidance_scale: float = 5.0
    guidance_rescale: float = 0.0
    unconditional: str = "auto"
    height: int = 1024
    width: int = 1024
    orig_height: int | None = None
    orig_width: int | None = None
    crop_coords_top: int = 0
    crop_coords_left: int = 0
    target_height: int | None = None
    target_width: int | None = None
    aesthetic_score: float = 6.0  # these two: of the SDXL refiner
    negative_aesthetic_score: float = 2.5
    strength: float = 1.0  # of img2img
    vae_tiling: str = "auto"
    vae_tile_size: int = 1024

    @property
    def tile(self) -> int | None:
        """Side of the tiles the autoencoder sees the picture in, in pixels; None: it sees it whole."""
        wanted = self.vae_tiling == "on" or (self.vae_tiling == "auto" and self.height * self.width > TILED_ABOVE)
        return self.vae_tile_size if wanted and max(self.height, self.width) > self.vae_tile_size else None

    def time_ids(self, count: int = 6, negative: bool = False) -> tuple[float, ...]:
        """What the model is told (``gm.models.architecture.size_numbers``); ``negative``: what to steer away from."""
        return size_numbers(
            count,
            (self.orig_height or self.height, self.orig_width or self.width),
            (self.crop_coords_top, self.crop_coords_left),
            (self.target_height or self.height, self.target_width or self.width),
            self.negative_aesthetic_score if negative else self.aesthetic_score,
        )


@dataclass(frozen=True)
class Drawn:
    """A picture and its final latents (4, h, w) float32, before the autoencoder."""

    picture: Image.Image
    latents: np.ndarray


class Pipeline:
    """A model ready to draw. ``alphas_cumprod`` (T,) and ``prediction_type`` must be those it was trained with."""

    def __init__(
        self, networks: "Networks", tokenizers: Tokenize, alphas_cumprod: np.ndarray, prediction_type: str = "epsilon"
    ):
        check_prediction_type(prediction_type, alphas_cumprod)
        self.networks, self.tokenizers = networks, tokenizers
        self.alphas_cumprod, self.prediction_type = alphas_cumprod, prediction_type
        self._texts: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    @classmethod
    def from_weights(
        cls,
        path: str | Path,
        tokenizers: Tokenize,
        alphas_cumprod: np.ndarray,
        prediction_type: str = "epsilon",
        precision: str = "fp32",
        param_fp16: bool = False,
    ) -> "Pipeline":
        """From a full checkpoint: ``.ckpt``, ``.safetensors`` or a diffusers folder.

        Raises:
            SuiteError: the file is missing, damaged, or lacks a network.
        """
        from gm.sampling.networks import load_networks

        networks = load_networks(path, None, precision, param_fp16)
        return cls(networks, tokenizers, alphas_cumprod, prediction_type)

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
            noise: initial unit noise (N, 4, h, w) in place of the seeds', one for each request or one for all.
            picture: img2img starts from it, at ``settings.strength``.
            on_step: called after every step of a batch.

        Raises:
            UsageError: settings that cannot work, before anything is computed.
        """
        steps, shape = self.check(settings)
        if noise is not None:
            noise = _checked_noise(noise, len(requests), shape)
        self.encode_texts(requests, batch_size)
        start = None if picture is None else self._encode_picture(picture, settings)
        return self._draw_all(requests, settings, steps, shape, batch_size, noise, start, on_step)

    def check(self, settings: Settings) -> tuple[Steps, tuple[int, int, int]]:
        """The steps and the shape of latents (4, h, w) these settings ask for.

        Raises:
            UsageError: they cannot work, with the remedy.
        """
        factor = self.networks.architecture.granularity
        for name, size in (("height", settings.height), ("width", settings.width)):
            if size % factor or size < factor:
                nearest = max(round(size / factor), 1) * factor
                raise UsageError(
                    f"--{name} {size} is not a multiple of {factor}, which this model needs: use {nearest}"
                )
        scale = self.networks.downsampling
        shape = (self.networks.latent_channels, settings.height // scale, settings.width // scale)
        return plan_steps(settings, self.alphas_cumprod), shape

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
            if start is None:
                latents = initial_latents(initial, steps)
            else:
                mean, log_variance = np.split(start, 2, axis=1)
                encoded = (mean + np.exp(0.5 * np.clip(log_variance, -30, 20)) * draw()) * self.networks.scale_factor
                latents = add_noise(encoded.astype(np.float32), initial, steps.alphas_cumprod[0])
            latents = find_sampler(settings.sampler).sample(
                self._model(batch, settings),
                latents,
                steps,
                self.prediction_type,
                draw,
                (lambda index, denoised: on_step()) if on_step else None,
            )
            pictures = to_pictures(self._decode(latents, settings.tile))
            for index in range(min(batch_size, len(requests) - first)):
                yield Drawn(pictures[index], latents[index])

    def encode_texts(self, requests: Sequence[Request], batch_size: int) -> None:
        """Encode what the requests need and was not encoded yet, each text once, in batches of one shape."""
        wanted = dict.fromkeys(request.prompt for request in requests)
        wanted |= dict.fromkeys(request.negative_prompt for request in requests)
        texts = [text for text in wanted if text not in self._texts]
        for first in range(0, len(texts), batch_size):
            part = texts[first : first + batch_size]
            ids = self.tokenizers.encode(part + part[-1:] * (batch_size - len(part)))
            context, pooled = self.networks.encode_text(*ids)
            self._texts |= {text: (context[row], pooled[row]) for row, text in enumerate(part)}

    def _conditions(self, batch: Sequence[Request], settings: Settings) -> list[np.ndarray]:
        """Context, pooled and time ids of a batch; with guidance, those of the negative prompts before them."""
        told = settings.time_ids(self.networks.architecture.size_numbers)
        rows = [(*self._texts[request.prompt], told) for request in batch]
        if settings.guidance_scale != 1:
            rows = [self._unconditional(request, settings) for request in batch] + rows
        return [np.stack([np.asarray(row[part], np.float32) for row in rows]) for part in range(3)]

    def _unconditional(self, request: Request, settings: Settings) -> tuple:
        model = self.networks.architecture
        context, pooled = self._texts[request.negative_prompt]
        told = settings.time_ids(model.size_numbers, negative=True)
        chosen = model.unconditional if settings.unconditional == "auto" else settings.unconditional
        if request.negative_prompt or chosen == "empty":
            return context, pooled, told
        if chosen == "zeros":
            return np.zeros_like(context), np.zeros_like(pooled), told
        return context, pooled, (0,) * len(told)

    def _model(self, batch: Sequence[Request], settings: Settings) -> Callable[[np.ndarray, float], np.ndarray]:
        guided = settings.guidance_scale != 1
        predict = self.networks.denoiser(*self._conditions(batch, settings), copies=2 if guided else 1)
        if not guided:
            return predict

        def model(latents: np.ndarray, timestep: float) -> np.ndarray:
            unconditional, conditional = np.split(predict(latents, timestep), 2)
            guided = classifier_free(unconditional, conditional, settings.guidance_scale)
            return rescale(guided, conditional, settings.guidance_rescale)

        return model

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


def plan_steps(settings: Settings, alphas_cumprod: np.ndarray) -> Steps:
    """The steps these settings ask for.

    Raises:
        UsageError: unknown names or numbers that do not fit, with the remedy.
    """
    if settings.unconditional not in UNCONDITIONALS:
        raise UsageError(f"--unconditional {settings.unconditional} is unknown: use one of {', '.join(UNCONDITIONALS)}")
    try:
        steps = inference_steps(
            alphas_cumprod,
            settings.sample_step,
            settings.timestep_spacing,
            settings.karras_sigmas,
            find_sampler(settings.sampler).grid,
        )
        return steps[skipped_steps(settings.sample_step, settings.strength) :]
    except ValueError as error:
        raise UsageError(str(error)) from None


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
