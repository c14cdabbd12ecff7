"""Samplers, one free function each: ``sample_x(model, x, steps, prediction_type, noise, callback) -> latents``.

- ``model(x, timestep) -> prediction``: x (B, C, h, w) float32 at unit scale, x = sqrt(abar) x_0 + sqrt(1 - abar) noise.
- ``x``: where to start, at the same scale and the noise level of the first step (``initial_latents``, ``add_noise``).
- ``steps``: from ``inference_steps`` with the sampler's ``grid``, or a slice of them; what is returned is at the noise
  level after the last step, again at unit scale, so a run can be cut anywhere and go on in another call.
- ``noise() -> (B, C, h, w)``: fresh unit noise, for the samplers that are ``stochastic``.
- ``callback(index, denoised)`` after each step, with the prediction of x_0.

The notation inside is that of Karras et al. 2022 (arXiv 2206.00364) and k-diffusion: there x = x_0 + sigma noise, and
``denoised`` is the network's x_0. Coefficients are float64, arrays stay float32. Each sampler follows the scheduler of
the same name of diffusers.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gm.diffusion.objective import check_prediction_type
from gm.diffusion.steps import Steps, sigma_to_timestep

Model = Callable[[np.ndarray, float], np.ndarray]
Noise = Callable[[], np.ndarray]
Callback = Callable[[int, np.ndarray], None]
Denoise = Callable[[np.ndarray, float, float], np.ndarray]


def initial_latents(noise: np.ndarray, steps: Steps) -> np.ndarray:
    """Unit-variance ``noise`` (B, C, h, w) at the scale the first step expects."""
    return noise.astype(np.float32) * steps.initial_scale


def to_denoised(prediction: np.ndarray, x: np.ndarray, abar: float, prediction_type: str) -> np.ndarray:
    """x_0 from what the network predicts at ``x`` of unit scale: the targets of ``gm.diffusion.objective`` inverted."""
    alpha, sigma = math.sqrt(abar), math.sqrt(1.0 - abar)
    if prediction_type == "epsilon":
        return (x - sigma * prediction) / alpha
    if prediction_type == "v_prediction":
        return alpha * x - sigma * prediction
    return prediction


def _sigma(abar: float) -> float:
    return math.sqrt((1.0 - abar) / abar)


def _unit_scale(sigma: float) -> float:
    return 1.0 / math.sqrt(sigma**2 + 1.0)


def _denoiser(model: Model, prediction_type: str) -> Denoise:
    """``denoise(x, sigma, timestep)`` for x = x_0 + sigma noise."""
    check_prediction_type(prediction_type)

    def denoise(x: np.ndarray, sigma: float, timestep: float) -> np.ndarray:
        scaled = x * _unit_scale(sigma)
        return to_denoised(model(scaled, timestep), scaled, 1.0 / (sigma**2 + 1.0), prediction_type)

    return denoise


def _begin(x: np.ndarray, steps: Steps) -> np.ndarray:
    return x.astype(np.float32) / _unit_scale(_sigma(float(steps.alphas_cumprod[0])))


def _end(x: np.ndarray, steps: Steps) -> np.ndarray:
    return x * _unit_scale(_sigma(float(steps.next_alphas_cumprod[-1])))


def _told(callback: Callback | None, index: int, denoised: np.ndarray) -> None:
    if callback is not None:
        callback(index, denoised)


def sample_euler(
    model: Model,
    x: np.ndarray,
    steps: Steps,
    prediction_type: str = "epsilon",
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> np.ndarray:
    """Euler steps: Karras et al. 2022, Algorithm 1 without its second-order correction."""
    denoise = _denoiser(model, prediction_type)
    x = _begin(x, steps)
    for index, (timestep, abar, next_abar) in enumerate(steps):
        sigma, next_sigma = _sigma(abar), _sigma(next_abar)
        denoised = denoise(x, sigma, timestep)
        d = (x - denoised) / sigma
        x = x + d * (next_sigma - sigma)
        _told(callback, index, denoised)
    return _end(x, steps)


def _ancestral_step(sigma: float, next_sigma: float) -> tuple[float, float]:
    """How far down to go without noise, and how much noise to add, so that the variance at ``next_sigma`` is right."""
    up = math.sqrt(next_sigma**2 * (sigma**2 - next_sigma**2) / sigma**2)
    return math.sqrt(next_sigma**2 - up**2), up


def sample_euler_ancestral(
    model: Model,
    x: np.ndarray,
    steps: Steps,
    prediction_type: str = "epsilon",
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> np.ndarray:
    """Euler steps below the next noise level, and fresh noise up to it (k-diffusion; ancestral as Ho et al. 2020)."""
    denoise = _denoiser(model, prediction_type)
    x = _begin(x, steps)
    for index, (timestep, abar, next_abar) in enumerate(steps):
        sigma, next_sigma = _sigma(abar), _sigma(next_abar)
        denoised = denoise(x, sigma, timestep)
        down, up = _ancestral_step(sigma, next_sigma)
        d = (x - denoised) / sigma
        x = x + d * (down - sigma)
        if up > 0:
            x = x + noise() * up
        _told(callback, index, denoised)
    return _end(x, steps)


def sample_heun(
    model: Model,
    x: np.ndarray,
    steps: Steps,
    prediction_type: str = "epsilon",
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> np.ndarray:
    """Heun's second-order steps: Karras et al. 2022, Algorithm 1. Two evaluations each, but for the last."""
    denoise = _denoiser(model, prediction_type)
    x = _begin(x, steps)
    for index, (timestep, abar, next_abar) in enumerate(steps):
        sigma, next_sigma = _sigma(abar), _sigma(next_abar)
        denoised = denoise(x, sigma, timestep)
        d = (x - denoised) / sigma
        ahead = x + d * (next_sigma - sigma)
        if next_sigma > 0:
            following = float(sigma_to_timestep(next_sigma, steps.train_alphas_cumprod))
            if index + 1 < len(steps):
                following = float(steps.timesteps[index + 1])
            d = (d + (ahead - denoise(ahead, next_sigma, following)) / next_sigma) / 2
            ahead = x + d * (next_sigma - sigma)
        x = ahead
        _told(callback, index, denoised)
    return _end(x, steps)


def sample_dpmpp_2m(
    model: Model,
    x: np.ndarray,
    steps: Steps,
    prediction_type: str = "epsilon",
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> np.ndarray:
    """DPM-Solver++(2M), midpoint form: Lu et al. 2022 (arXiv 2211.01095), Algorithm 2. The last step is first order."""
    denoise = _denoiser(model, prediction_type)
    x = _begin(x, steps)
    previous, previous_h = None, 0.0
    for index, (timestep, abar, next_abar) in enumerate(steps):
        sigma, next_sigma = _sigma(abar), _sigma(next_abar)
        denoised = denoise(x, sigma, timestep)
        if next_sigma == 0:
            x = denoised
        else:
            h = math.log(sigma / next_sigma)
            slope = 0.0 if previous is None else (denoised - previous) * (h / (2 * previous_h))
            x = (next_sigma / sigma) * x - math.expm1(-h) * (denoised + slope)
            previous, previous_h = denoised, h
        _told(callback, index, denoised)
    return _end(x, steps)


def sample_ddim(
    model: Model,
    x: np.ndarray,
    steps: Steps,
    prediction_type: str = "epsilon",
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> np.ndarray:
    """DDIM, eta = 0: Song et al. 2020 (arXiv 2010.02502), eq. 12. Works at abar = 0 unless epsilon is predicted."""
    check_prediction_type(prediction_type, steps.alphas_cumprod)
    x = x.astype(np.float32)
    for index, (timestep, abar, next_abar) in enumerate(steps):
        denoised = to_denoised(model(x, timestep), x, abar, prediction_type)
        epsilon = (x - math.sqrt(abar) * denoised) / math.sqrt(1.0 - abar)
        x = math.sqrt(next_abar) * denoised + math.sqrt(1.0 - next_abar) * epsilon
        _told(callback, index, denoised)
    return x


class Sampler(NamedTuple):
    """A sampler, the ``grid`` its steps are made with, and what it needs."""

    sample: Callable[..., np.ndarray]
    grid: str
    stochastic: bool = False
    evaluations: int = 1  # of the network in each step


SAMPLERS: dict[str, Sampler] = {
    "euler": Sampler(sample_euler, "karras"),
    "euler_ancestral": Sampler(sample_euler_ancestral, "karras", stochastic=True),
    "heun": Sampler(sample_heun, "karras", evaluations=2),
    "ddim": Sampler(sample_ddim, "ddim"),
    "dpmpp_2m": Sampler(sample_dpmpp_2m, "multistep"),
}
# MindONE's class names
ALIASES = {
    "EulerEDMSampler": "euler",
    "HeunEDMSampler": "heun",
    "EulerAncestralSampler": "euler_ancestral",
    "DPMPP2MSampler": "dpmpp_2m",
}


def find_sampler(name: str) -> Sampler:
    """The sampler of this name, or of MindONE's class of that name.

    Raises:
        ValueError: listing the names.
    """
    try:
        return SAMPLERS[ALIASES.get(name, name)]
    except KeyError:
        raise ValueError(f"sampler {name!r} is unknown: use one of {', '.join(SAMPLERS)}") from None
