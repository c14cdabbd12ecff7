"""What all samplers share: the network as a function from noisy latents to x_0, and the change of scale."""

import math
from collections.abc import Callable

import numpy as np

from gm.diffusion.objective import check_prediction_type
from gm.diffusion.steps import Steps

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


def sigma_of(abar: float) -> float:
    """Noise over signal."""
    return math.sqrt((1.0 - abar) / abar)


def unit_scale(sigma: float) -> float:
    """From x_0 + sigma noise to unit variance."""
    return 1.0 / math.sqrt(sigma**2 + 1.0)


def denoiser(model: Model, prediction_type: str) -> Denoise:
    """``denoise(x, sigma, timestep)`` for x = x_0 + sigma noise."""
    check_prediction_type(prediction_type)

    def denoise(x: np.ndarray, sigma: float, timestep: float) -> np.ndarray:
        scaled = x * unit_scale(sigma)
        return to_denoised(model(scaled, timestep), scaled, 1.0 / (sigma**2 + 1.0), prediction_type)

    return denoise


def begin(x: np.ndarray, steps: Steps) -> np.ndarray:
    """From unit scale, at the noise level of the first step, to x_0 + sigma noise."""
    return x.astype(np.float32) / unit_scale(sigma_of(float(steps.alphas_cumprod[0])))


def end(x: np.ndarray, steps: Steps) -> np.ndarray:
    """Back to unit scale, at the noise level after the last step."""
    return x * unit_scale(sigma_of(float(steps.next_alphas_cumprod[-1])))


def tell(callback: Callback | None, index: int, denoised: np.ndarray) -> None:
    """Call the callback, if there is one."""
    if callback is not None:
        callback(index, denoised)
