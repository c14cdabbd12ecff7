"""Noise schedules: how much of the picture is left at each of the T training timesteps.

Notation of Ho et al. 2020 (arXiv 2006.11239): x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise, with abar called
``alphas_cumprod``; index 0 is the cleanest. Everything is float64: in float32, abar_998 of a rescaled
schedule (about 2e-7) is lost in the rounding.
"""

import math

import numpy as np

BETA_SCHEDULES = ("scaled_linear", "linear", "cosine")
_ALIASES = {"squaredcos_cap_v2": "cosine"}  # diffusers' name
_COSINE_MAX_BETA = 0.999


def betas(
    schedule: str = "scaled_linear",
    num_train_timesteps: int = 1000,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
) -> np.ndarray:
    """The forward variances (T,).

    ``linear``: Ho et al. 2020, section 4. ``scaled_linear``: linear in sqrt(beta), latent diffusion's schedule (Rombach
    et al. 2021, arXiv 2112.10752), whose defaults here are SDXL's. ``cosine``: Nichol and Dhariwal 2021 (arXiv
    2102.09672), eq. 17; it has no start and end.

    Raises:
        ValueError: unknown schedule, or numbers that make no schedule.
    """
    schedule = _ALIASES.get(schedule, schedule)
    if schedule not in BETA_SCHEDULES:
        raise ValueError(f"beta schedule {schedule!r} is unknown: use one of {', '.join(BETA_SCHEDULES)}")
    if num_train_timesteps < 1:
        raise ValueError(f"num_train_timesteps is {num_train_timesteps}: it must be at least 1")
    if schedule == "cosine":
        edges = np.arange(num_train_timesteps + 1) / num_train_timesteps
        abar = np.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2
        return np.minimum(1 - abar[1:] / abar[:-1], _COSINE_MAX_BETA)
    if not 0 < beta_start <= beta_end < 1:
        raise ValueError(f"beta_start {beta_start} and beta_end {beta_end} must satisfy 0 < start <= end < 1")
    if schedule == "linear":
        return np.linspace(beta_start, beta_end, num_train_timesteps, dtype=np.float64)
    return np.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=np.float64) ** 2


def alphas_cumprod(betas: np.ndarray) -> np.ndarray:
    """abar_t = prod_{s <= t} (1 - beta_s), (T,): Ho et al. 2020, eq. 4."""
    return np.cumprod(1.0 - np.asarray(betas, np.float64))


def rescale_zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """The same schedule, stretched so that the last timestep is pure noise: (T,) -> (T,) with abar_{T-1} = 0 exactly.

    Lin et al. 2023 (arXiv 2305.08891), Algorithm 1: sqrt(abar) is shifted to end at 0 and scaled to start where it did.
    """
    root = np.sqrt(alphas_cumprod(betas))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    abar = root**2
    alphas = np.concatenate([abar[:1], abar[1:] / abar[:-1]])
    return 1.0 - alphas


def snr(alphas_cumprod: np.ndarray) -> np.ndarray:
    """Signal-to-noise ratio abar / (1 - abar), (T,); 0 where nothing of the picture is left (Kingma et al. 2021)."""
    alphas_cumprod = np.asarray(alphas_cumprod, np.float64)
    return alphas_cumprod / (1.0 - alphas_cumprod)
