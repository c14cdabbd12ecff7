"""What the network is asked to predict, and how much each timestep counts in the loss.

With alpha = sqrt(abar_t) and sigma = sqrt(1 - abar_t): x_t = alpha x_0 + sigma noise. The targets are
epsilon: noise (Ho et al. 2020); v_prediction: v = alpha noise - sigma x_0 (Salimans and Ho 2022, arXiv 2202.00512,
appendix D); sample: x_0 itself.
"""

from typing import NamedTuple

import numpy as np

from gm.diffusion.schedule import snr

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
WEIGHTINGS = ("min_snr", "soft_min_snr", "debiased")
HUBER_SCHEDULES = ("constant", "exponential", "snr")


class Coefficients(NamedTuple):
    """Of each sample of a batch, all (B,) float32: ``x_t = alpha * x_0 + sigma * noise`` and
    ``target = target_noise * noise + target_latents * x_0``."""

    alpha: np.ndarray
    sigma: np.ndarray
    target_noise: np.ndarray
    target_latents: np.ndarray


def check_prediction_type(prediction_type: str, alphas_cumprod: np.ndarray | None = None) -> None:
    """Refuse an unknown prediction type, and epsilon where a timestep is pure noise.

    Raises:
        ValueError: naming the remedy.
    """
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction type {prediction_type!r} is unknown: use one of {', '.join(PREDICTION_TYPES)}")
    if prediction_type == "epsilon" and alphas_cumprod is not None and (np.asarray(alphas_cumprod) == 0).any():
        raise ValueError(
            "epsilon prediction has nothing to learn at a timestep of pure noise (zero terminal SNR): "
            "use v_prediction or sample, or leave the schedule as it is"
        )


def coefficients(alphas_cumprod: np.ndarray, prediction_type: str) -> Coefficients:
    """The numbers that noise a batch and make its target, from the abar of each sample (B,).

    Raises:
        ValueError: as ``check_prediction_type``.
    """
    check_prediction_type(prediction_type, alphas_cumprod)
    abar = np.asarray(alphas_cumprod, np.float64)
    alpha, sigma = np.sqrt(abar), np.sqrt(1.0 - abar)
    target_noise, target_latents = {
        "epsilon": (np.ones_like(alpha), np.zeros_like(alpha)),
        "v_prediction": (alpha, -sigma),
        "sample": (np.zeros_like(alpha), np.ones_like(alpha)),
    }[prediction_type]
    return Coefficients(*(array.astype(np.float32) for array in (alpha, sigma, target_noise, target_latents)))


def loss_weights(
    alphas_cumprod: np.ndarray,
    prediction_type: str,
    snr_gamma: float | None = None,
    weighting: str | None = None,
    floor: float = 0.0,
) -> np.ndarray:
    """Weight of the mean squared error at each noise level: abar (N,), of timesteps or samples, -> (N,) float64.

    A weighting is one function w(SNR) of the error of x_0; the error of epsilon is SNR times that of x_0 and the error
    of v is SNR + 1 times (Hang et al. 2023, arXiv 2303.09556, section 3.2), so the weight returned is w / SNR for
    epsilon, w / (SNR + 1) for v_prediction and w for sample, with

    - ``min_snr``: w = min(SNR, gamma), Hang et al., eq. 9. A gamma alone means this one.
    - ``soft_min_snr``: w = SNR gamma / (SNR + gamma), Crowson et al. 2024 (arXiv 2401.11605), section 4.4.
    - ``debiased``: w = sqrt(SNR), Yu et al. 2023 (arXiv 2310.08442); it has no gamma.
    - none: every noise level weighs 1, whatever is predicted.

    ``floor`` raises smaller weights to it: with zero terminal SNR the weight of the last timestep is 0 otherwise.

    Raises:
        ValueError: as ``check_prediction_type``; an unknown weighting; a gamma that is missing, senseless or not > 0.
    """
    check_prediction_type(prediction_type, alphas_cumprod)
    if weighting is None and snr_gamma is not None:
        weighting = "min_snr"
    if weighting not in (None, *WEIGHTINGS):
        raise ValueError(f"loss weighting {weighting!r} is unknown: use one of {', '.join(WEIGHTINGS)}")
    if snr_gamma is not None and not snr_gamma > 0:
        raise ValueError(f"snr_gamma is {snr_gamma}: it must be above 0 (5.0 is the paper's), or none for no weighting")
    if weighting in ("min_snr", "soft_min_snr") and snr_gamma is None:
        raise ValueError(f"loss weighting {weighting} needs snr_gamma: 5.0, or 4.0 for the soft one, are the papers'")
    if weighting == "debiased" and snr_gamma is not None:
        raise ValueError("debiased weighting has no snr_gamma: leave one of them out")
    ratio = snr(alphas_cumprod)
    if weighting is None:
        return np.maximum(np.ones_like(ratio), floor)
    if weighting == "min_snr":
        of_latents = np.minimum(ratio, snr_gamma)
    elif weighting == "soft_min_snr":
        of_latents = ratio * snr_gamma / (ratio + snr_gamma)
    else:
        of_latents = np.sqrt(ratio)
    weights = of_latents / {"epsilon": ratio, "v_prediction": ratio + 1.0, "sample": 1.0}[prediction_type]
    return np.maximum(weights, floor)


def huber_c(
    schedule: str, c: float, timesteps: np.ndarray, alphas_cumprod: np.ndarray, num_train_timesteps: int = 1000
) -> np.ndarray:
    """Where a robust loss turns from quadratic to linear, for each sample (B,) float64 of a timestep and an abar (B,).

    The schedules of Khrapov et al. 2024 (arXiv 2403.16728), as diffusers and kohya's scripts have them: ``constant``:
    c; ``exponential``: c^(t / T); ``snr``: (1 - c) / (1 + sqrt((1 - abar) / abar))^2 + c. The latter two go from about
    1 for little noise to c for much.

    Raises:
        ValueError: unknown schedule, or c not above 0.
    """
    if schedule not in HUBER_SCHEDULES:
        raise ValueError(f"Huber schedule {schedule!r} is unknown: use one of {', '.join(HUBER_SCHEDULES)}")
    if not c > 0:
        raise ValueError(f"huber_c is {c}: it must be above 0; 0.1 is usual")
    if schedule == "exponential":
        return c ** (np.asarray(timesteps, np.float64) / num_train_timesteps)
    abar = np.asarray(alphas_cumprod, np.float64)
    if schedule == "constant":
        return np.full_like(abar, c)
    alpha, sigma = np.sqrt(abar), np.sqrt(1.0 - abar)
    return (1.0 - c) * (alpha / (alpha + sigma)) ** 2 + c  # no division by alpha, which zero terminal SNR makes 0
