"""Samplers, one free function each: ``sample_x(model, x, steps, prediction_type, noise, callback) -> latents``.

- ``model(x, timestep) -> prediction``: x (B, C, h, w) float32 at unit scale, x = sqrt(abar) x_0 + sqrt(1 - abar) noise.
- ``x``: where to start, at the same scale and the noise level of the first step (``initial_latents``, ``add_noise``).
- ``prediction_type``: what the model predicts, or a function that says it for each timestep.
- ``steps``: from ``inference_steps`` with the sampler's ``grid``, or a slice of them; what is returned is at the noise
  level after the last step, again at unit scale, so a run can be cut anywhere and go on in another call.
- ``noise() -> (B, C, h, w)``: fresh unit noise, for the samplers that add some.
- ``callback(index, denoised)`` after each step, with the prediction of x_0.

The notation inside is that of Karras et al. 2022 (arXiv 2206.00364) and k-diffusion: there x = x_0 + sigma noise, and
``denoised`` is the network's x_0. Coefficients are float64, arrays stay float32. Each sampler follows the scheduler of
the same name of diffusers.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gm.diffusion.denoiser import (
    Callback,
    Model,
    Noise,
    Predicts,
    begin,
    check_steps,
    denoiser,
    end,
    predicted_at,
    sigma_of,
    tell,
    to_denoised,
)
from gm.diffusion.multistep import sample_dpmpp_2m, sample_lms, sample_unipc
from gm.diffusion.steps import Steps, sigma_to_timestep

# The boundary condition of a consistency model: at timestep 0 it must return its input (Luo et al. 2023, section 4.1).
CONSISTENCY_SIGMA_DATA, CONSISTENCY_TIMESTEP_SCALE = 0.5, 10.0


def sample_euler(
    model: Model,
    x: np.ndarray,
    steps: Steps,
    prediction_type: Predicts = "epsilon",
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> np.ndarray:
    """Euler steps: Karras et al. 2022, Algorithm 1 without its second-order correction."""
    denoise = denoiser(model, prediction_type)
    x = begin(x, steps)
    for index, (timestep, abar, next_abar) in enumerate(steps):
        sigma, next_sigma = sigma_of(abar), sigma_of(next_abar)
        denoised = denoise(x, sigma, timestep)
        d = (x - denoised) / sigma
        x = x + d * (next_sigma - sigma)
        tell(callback, index, denoised)
    return end(x, steps)


def _ancestral_step(sigma: float, next_sigma: float) -> tuple[float, float]:
    """How far down to go without noise, and how much noise to add, so that the variance at ``next_sigma`` is right."""
    up = math.sqrt(next_sigma**2 * (sigma**2 - next_sigma**2) / sigma**2)
    return math.sqrt(next_sigma**2 - up**2), up


def sample_euler_ancestral(
    model: Model,
    x: np.ndarray,
    steps: Steps,
    prediction_type: Predicts = "epsilon",
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> np.ndarray:
    """Euler steps below the next noise level, and fresh noise up to it (k-diffusion; ancestral as Ho et al. 2020)."""
    denoise = denoiser(model, prediction_type)
    x = begin(x, steps)
    for index, (timestep, abar, next_abar) in enumerate(steps):
        sigma, next_sigma = sigma_of(abar), sigma_of(next_abar)
        denoised = denoise(x, sigma, timestep)
        down, up = _ancestral_step(sigma, next_sigma)
        d = (x - denoised) / sigma
        x = x + d * (down - sigma)
        if up > 0:
            x = x + noise() * up
        tell(callback, index, denoised)
    return end(x, steps)


def sample_heun(
    model: Model,
    x: np.ndarray,
    steps: Steps,
    prediction_type: Predicts = "epsilon",
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> np.ndarray:
    """Heun's second-order steps: Karras et al. 2022, Algorithm 1. Two evaluations each, but for the last."""
    denoise = denoiser(model, prediction_type)
    x = begin(x, steps)
    for index, (timestep, abar, next_abar) in enumerate(steps):
        sigma, next_sigma = sigma_of(abar), sigma_of(next_abar)
        denoised = denoise(x, sigma, timestep)
        d = (x - denoised) / sigma
        ahead = x + d * (next_sigma - sigma)
        following = float(sigma_to_timestep(next_sigma, steps.train_alphas_cumprod))
        if index + 1 < len(steps):
            following = float(steps.timesteps[index + 1])
        if next_sigma > 0 and following >= steps.lowest:
            d = (d + (ahead - denoise(ahead, next_sigma, following)) / next_sigma) / 2
            ahead = x + d * (next_sigma - sigma)
        x = ahead
        tell(callback, index, denoised)
    return end(x, steps)


def sample_ddim(
    model: Model,
    x: np.ndarray,
    steps: Steps,
    prediction_type: Predicts = "epsilon",
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> np.ndarray:
    """DDIM, eta = 0: Song et al. 2020 (arXiv 2010.02502), eq. 12. Works at abar = 0 unless epsilon is predicted."""
    check_steps(prediction_type, steps)
    x = x.astype(np.float32)
    for index, (timestep, abar, next_abar) in enumerate(steps):
        denoised = to_denoised(model(x, timestep), x, abar, predicted_at(prediction_type, timestep))
        epsilon = (x - math.sqrt(abar) * denoised) / math.sqrt(1.0 - abar)
        x = math.sqrt(next_abar) * denoised + math.sqrt(1.0 - next_abar) * epsilon
        tell(callback, index, denoised)
    return x


def sample_ddpm(
    model: Model,
    x: np.ndarray,
    steps: Steps,
    prediction_type: Predicts = "epsilon",
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> np.ndarray:
    """Ancestral sampling from the posterior: Ho et al. 2020 (arXiv 2006.11239), eq. 7, with its smaller variance."""
    check_steps(prediction_type, steps)
    x = x.astype(np.float32)
    for index, (timestep, abar, next_abar) in enumerate(steps):
        denoised = to_denoised(model(x, timestep), x, abar, predicted_at(prediction_type, timestep))
        alpha = abar / next_abar
        variance = (1.0 - next_abar) / (1.0 - abar) * (1.0 - alpha)
        x = (
            math.sqrt(next_abar) * (1.0 - alpha) / (1.0 - abar) * denoised
            + math.sqrt(alpha) * (1.0 - next_abar) / (1.0 - abar) * x
        )
        if variance > 0:
            x = x + math.sqrt(variance) * noise()
        tell(callback, index, denoised)
    return x


def sample_dpmpp_2s_ancestral(
    model: Model,
    x: np.ndarray,
    steps: Steps,
    prediction_type: Predicts = "epsilon",
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> np.ndarray:
    """DPM-Solver++(2S), Lu et al. 2022 (arXiv 2211.01095), Algorithm 1, with ancestral noise, as k-diffusion has it.

    Two evaluations a step, but for the last; the second is at the timestep of the geometric mean of the sigmas.
    """
    denoise = denoiser(model, prediction_type)
    x = begin(x, steps)
    for index, (timestep, abar, next_abar) in enumerate(steps):
        sigma, next_sigma = sigma_of(abar), sigma_of(next_abar)
        denoised = denoise(x, sigma, timestep)
        down, up = _ancestral_step(sigma, next_sigma)
        if down == 0:
            x = denoised
        else:
            h = math.log(sigma / down)
            middle = math.sqrt(sigma * down)
            between = float(sigma_to_timestep(middle, steps.train_alphas_cumprod))
            aim = denoised
            if between >= steps.lowest:
                halfway = (middle / sigma) * x - math.expm1(-h / 2) * denoised
                aim = denoise(halfway, middle, between)
            x = (down / sigma) * x - math.expm1(-h) * aim
        if up > 0:
            x = x + noise() * up
        tell(callback, index, denoised)
    return end(x, steps)


def sample_lcm(
    model: Model,
    x: np.ndarray,
    steps: Steps,
    prediction_type: Predicts = "epsilon",
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> np.ndarray:
    """Multistep consistency sampling: Luo et al. 2023 (arXiv 2310.04378), Algorithm 3, for a distilled model."""
    check_steps(prediction_type, steps)
    x = x.astype(np.float32)
    for index, (timestep, abar, next_abar) in enumerate(steps):
        scaled = CONSISTENCY_TIMESTEP_SCALE * timestep
        skip = CONSISTENCY_SIGMA_DATA**2 / (scaled**2 + CONSISTENCY_SIGMA_DATA**2)
        out = scaled / math.sqrt(scaled**2 + CONSISTENCY_SIGMA_DATA**2)
        denoised = out * to_denoised(model(x, timestep), x, abar, predicted_at(prediction_type, timestep)) + skip * x
        x = denoised
        if next_abar < 1:
            x = math.sqrt(next_abar) * denoised + math.sqrt(1.0 - next_abar) * noise()
        tell(callback, index, denoised)
    return x


class Sampler(NamedTuple):
    """A sampler, and the ``grid`` its steps are made with."""

    sample: Callable[..., np.ndarray]
    grid: str


SAMPLERS: dict[str, Sampler] = {
    "euler": Sampler(sample_euler, "karras"),
    "euler_ancestral": Sampler(sample_euler_ancestral, "karras"),
    "heun": Sampler(sample_heun, "karras"),
    "ddim": Sampler(sample_ddim, "ddim"),
    "ddpm": Sampler(sample_ddpm, "ddpm"),
    "dpmpp_2m": Sampler(sample_dpmpp_2m, "multistep"),
    "dpmpp_2s_ancestral": Sampler(sample_dpmpp_2s_ancestral, "karras"),
    "unipc": Sampler(sample_unipc, "multistep"),
    "lms": Sampler(sample_lms, "karras"),
    "lcm": Sampler(sample_lcm, "consistency"),
}
# MindONE's class names
ALIASES = {
    "EulerEDMSampler": "euler",
    "HeunEDMSampler": "heun",
    "EulerAncestralSampler": "euler_ancestral",
    "DPMPP2MSampler": "dpmpp_2m",
    "DPMPP2SAncestralSampler": "dpmpp_2s_ancestral",
    "LinearMultistepSampler": "lms",
    "LCMSampler": "lcm",
}


def canonical_name(name: str) -> str:
    """The sampler's own name, of this or of MindONE's class.

    Raises:
        ValueError: listing the names.
    """
    name = ALIASES.get(name, name)
    if name not in SAMPLERS:
        raise ValueError(f"sampler {name!r} is unknown: use one of {', '.join(SAMPLERS)}")
    return name


def find_sampler(name: str) -> Sampler:
    """The sampler of this name, or of MindONE's class of that name; raises ValueError as ``canonical_name``."""
    return SAMPLERS[canonical_name(name)]
