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
# What the network predicts: "epsilon", "v_prediction" or "sample", or which of them at a timestep, where two networks
# that were trained differently share the steps.
Predicts = str | Callable[[float], str]


def initial_latents(noise: np.ndarray, steps: Steps) -> np.ndarray:
    """Unit-variance ``noise`` (B, C, h, w) at the scale the first step expects."""
    return noise.astype(np.float32) * steps.initial_scale


def predicted_at(prediction_type: Predicts, timestep: float) -> str:
    """What the network predicts at this timestep."""
    return prediction_type if isinstance(prediction_type, str) else prediction_type(timestep)


def check_steps(prediction_type: Predicts, steps: Steps) -> None:
    """Raises ValueError where the network would predict epsilon of pure noise, or something unknown."""
    for timestep, abar, _ in steps:
        check_prediction_type(predicted_at(prediction_type, timestep), np.float64(abar))


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


def denoiser(model: Model, prediction_type: Predicts) -> Denoise:
    """``denoise(x, sigma, timestep)`` for x = x_0 + sigma noise."""
    if isinstance(prediction_type, str):
        check_prediction_type(prediction_type)

    def denoise(x: np.ndarray, sigma: float, timestep: float) -> np.ndarray:
        scaled = x * unit_scale(sigma)
        predicts = predicted_at(prediction_type, timestep)
        return to_denoised(model(scaled, timestep), scaled, 1.0 / (sigma**2 + 1.0), predicts)

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
