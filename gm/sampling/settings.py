"""What to draw and how, as plain data."""

from dataclasses import dataclass

import numpy as np

from gm.diffusion.samplers import find_sampler
from gm.diffusion.steps import Steps, handover, inference_steps, skipped_steps
from gm.errors import UsageError
from gm.models.architecture import size_numbers

TILED_ABOVE = 2**21  # pixels: --vae_tiling auto

UNCONDITIONALS = ("auto", "zeros", "empty", "dropout")


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

    ``denoising_end``: the share of the schedule after which the second stage takes over, or drawing stops where there
    is none; ``denoising_start``: the share that the given latents have behind them.
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
    denoising_start: float | None = None
    denoising_end: float | None = None
    vae_tiling: str = "auto"
    vae_tile_size: int = 1024

    @property
    def guided(self) -> bool:
        """Whether guidance is on: above 1, as in diffusers, whose few-step models are drawn with 0."""
        return self.guidance_scale > 1

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


def plan_steps(settings: Settings, alphas_cumprod: np.ndarray, two_stages: bool = False) -> Steps:
    """The steps these settings ask for; those of both stages, if there are two.

    Raises:
        UsageError: unknown names or numbers that do not fit, with the remedy.
    """
    if settings.unconditional not in UNCONDITIONALS:
        raise UsageError(f"--unconditional {settings.unconditional} is unknown: use one of {', '.join(UNCONDITIONALS)}")
    total = len(alphas_cumprod)
    try:
        steps = inference_steps(
            alphas_cumprod,
            settings.sample_step,
            settings.timestep_spacing,
            settings.karras_sigmas,
            find_sampler(settings.sampler).grid,
        )
        steps = steps[skipped_steps(settings.sample_step, settings.strength) :]
        if settings.denoising_start is not None:
            steps = steps.below(handover(settings.denoising_start, total))
        if settings.denoising_end is not None:
            boundary = handover(settings.denoising_end, total)
            first, second = steps.until(boundary), steps.below(boundary)
            if not first or (two_stages and not second):
                which = "second" if first else "first"
                raise UsageError(
                    f"--denoising_end {settings.denoising_end} of {settings.sample_step} steps leaves none for the "
                    f"{which} stage: move it, or take more steps"
                )
            steps = steps if two_stages else first
    except ValueError as error:
        raise UsageError(str(error)) from None
    if not len(steps):
        raise UsageError(
            f"--denoising_start {settings.denoising_start} of {settings.sample_step} steps leaves none: take more steps"
        )
    return steps
