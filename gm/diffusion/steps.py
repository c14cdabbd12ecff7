"""The steps of one sampling run: which timesteps the network is asked at, and the noise level before and after each.

A sampler of diffusers decides these in its ``set_timesteps``; the conventions found there are the ``grid`` of
``inference_steps``.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

SPACINGS = ("leading", "trailing", "linspace")
GRIDS = ("karras", "multistep", "ddim", "ddpm", "consistency")
LEADING_OFFSET = 1  # ``steps_offset`` of Stable Diffusion's schedulers
KARRAS_RHO = 7.0
# What diffusers puts in place of abar = 0, which would be an infinite sigma: the smallest subnormal of float16.
NEARLY_ZERO = 2.0**-24
CONSISTENCY_TRAINING_STEPS = 50  # ``original_inference_steps`` of latent consistency models


@dataclass(frozen=True)
class Steps:
    """``n`` steps; iterating gives ``(timestep, abar, next_abar)`` of each, slicing a part of the run.

    ``timesteps``, ``alphas_cumprod`` and ``next_alphas_cumprod`` are (n,) float64, in order of sampling;
    ``train_alphas_cumprod`` (T,) is the schedule they were taken from. Below ``lowest`` the network is not asked: a
    second-order step that would need it there stays of first order.
    """

    timesteps: np.ndarray
    alphas_cumprod: np.ndarray
    next_alphas_cumprod: np.ndarray
    train_alphas_cumprod: np.ndarray
    initial_scale: float = 1.0
    lowest: float = 0.0

    def __len__(self) -> int:
        return len(self.timesteps)

    def __iter__(self) -> Iterator[tuple[float, float, float]]:
        # Python floats leave float32 arrays float32 in every numpy.
        return zip(self.timesteps.tolist(), self.alphas_cumprod.tolist(), self.next_alphas_cumprod.tolist())

    def __getitem__(self, part: slice) -> "Steps":
        return replace(
            self,
            timesteps=self.timesteps[part],
            alphas_cumprod=self.alphas_cumprod[part],
            next_alphas_cumprod=self.next_alphas_cumprod[part],
            initial_scale=self.initial_scale if part.indices(len(self))[0] == 0 else 1.0,
        )

    def until(self, timestep: float) -> "Steps":
        """The steps at or above a timestep: the first stage's."""
        return replace(self[: self._count(timestep)], lowest=timestep)

    def below(self, timestep: float) -> "Steps":
        """The steps below a timestep: the second stage's."""
        return self[self._count(timestep) :]

    def _count(self, timestep: float) -> int:
        return int((self.timesteps >= timestep).sum())


def sigmas(alphas_cumprod: np.ndarray) -> np.ndarray:
    """Noise over signal, sqrt((1 - abar) / abar): the noise level of Karras et al. 2022 (arXiv 2206.00364)."""
    return np.sqrt((1.0 - alphas_cumprod) / alphas_cumprod)


def sigma_to_timestep(sigma: np.ndarray | float, alphas_cumprod: np.ndarray) -> np.ndarray:
    """The fractional timestep of a noise level, linear in log sigma between the trained ones, clipped at both ends."""
    logs = np.log(sigmas(np.maximum(alphas_cumprod, NEARLY_ZERO)))
    return np.interp(np.log(np.maximum(sigma, 1e-10)), logs, np.arange(len(logs)))


def inference_timesteps(
    num_steps: int, spacing: str = "leading", num_train_timesteps: int = 1000, one_more: bool = False
) -> np.ndarray:
    """Timesteps (num_steps,) from noisy to clean, as Lin et al. 2023 (arXiv 2305.08891), table 2, names them.

    ``leading``: multiples of ``T // n`` plus 1; ``trailing``: from T - 1 down in equal parts (the one that visits the
    last timestep, as zero terminal SNR needs); ``linspace``: from T - 1 to 0, not rounded. ``one_more`` spreads leading
    and linspace over ``num_steps + 1`` and leaves the cleanest out, for solvers that end at sigma = 0 by themselves.

    Raises:
        ValueError: unknown spacing, or a number of steps the schedule cannot give.
    """
    if spacing not in SPACINGS:
        raise ValueError(f"timestep spacing {spacing!r} is unknown: use one of {', '.join(SPACINGS)}")
    if not 1 <= num_steps <= num_train_timesteps:
        raise ValueError(f"{num_steps} sampling steps: choose between 1 and {num_train_timesteps}")
    if spacing == "trailing":
        return np.round(num_train_timesteps - np.arange(num_steps) * (num_train_timesteps / num_steps)) - 1
    points = num_steps + one_more
    if spacing == "linspace":
        return np.linspace(0, num_train_timesteps - 1, points)[::-1][:num_steps]
    timesteps = (np.arange(points) * float(num_train_timesteps // points))[::-1][:num_steps] + LEADING_OFFSET
    if timesteps[0] >= num_train_timesteps or (num_steps > 1 and timesteps[0] == timesteps[1]):
        raise ValueError(f"{num_steps} steps of leading spacing do not fit {num_train_timesteps}: use trailing spacing")
    return timesteps


def inference_steps(
    alphas_cumprod: np.ndarray,
    num_steps: int,
    spacing: str = "leading",
    karras_sigmas: bool = False,
    grid: str = "karras",
) -> Steps:
    """The steps of a run, by the convention of the sampler's ``grid``.

    - ``karras`` (Euler, Heun, LMS and the ancestral ones): fractional timesteps with interpolated sigmas.
    - ``multistep`` (DPM-Solver++, UniPC): whole timesteps of ``num_steps + 1`` points.
    - ``ddpm``: whole timesteps, exact abar, which may be 0.
    - ``ddim``: the same; each step goes to ``timestep - T // n``, which is the next timestep when n divides T, and the
      last to abar_0 (``set_alpha_to_one: false``, as in SDXL's scheduler file).
    - ``consistency`` (LCM): a subset of the 50 timesteps the student was distilled at; spacing has no say.

    The first two end at abar = 1 and put 2**-24 where abar is 0, as diffusers does. ``karras_sigmas`` spaces the
    noise levels by Karras et al. 2022, eq. 5, rho = 7, and takes the timesteps that belong to them.

    Raises:
        ValueError: what cannot be combined, with the remedy.
    """
    if grid not in GRIDS:
        raise ValueError(f"grid {grid!r} is unknown: use one of {', '.join(GRIDS)}")
    total = len(alphas_cumprod)
    if karras_sigmas and grid not in ("karras", "multistep"):
        raise ValueError("this sampler steps over whole timesteps and has no Karras sigmas: use euler or dpmpp_2m")
    if grid == "consistency":
        return _consistency_steps(alphas_cumprod, num_steps)
    timesteps = inference_timesteps(num_steps, spacing, total, one_more=grid == "multistep")
    if grid in ("ddim", "ddpm"):
        steps = _whole_steps(alphas_cumprod, np.round(timesteps))
        if grid == "ddim":
            following = np.maximum(steps.timesteps.astype(np.int64) - total // num_steps, 0)
            steps = replace(steps, next_alphas_cumprod=alphas_cumprod[following])
        return steps
    alphas_cumprod = np.maximum(alphas_cumprod, NEARLY_ZERO)
    if grid == "multistep":
        timesteps = np.round(timesteps)
    levels = np.interp(timesteps, np.arange(total), sigmas(alphas_cumprod))
    if karras_sigmas:
        ends = sigmas(alphas_cumprod)[[-1, 0]] if grid == "multistep" else levels[[0, -1]]
        high, low = ends ** (1 / KARRAS_RHO)
        levels = (high + np.linspace(0, 1, num_steps) * (low - high)) ** KARRAS_RHO
        timesteps = sigma_to_timestep(levels, alphas_cumprod)
        if grid == "multistep":
            timesteps = np.round(timesteps)
    abar = 1.0 / (1.0 + levels**2)
    # Without an offset at the noisy end, the k-diffusion samplers of diffusers start from sigma * noise alone.
    scale = float(np.sqrt(1.0 - abar[0])) if grid == "karras" and spacing != "leading" else 1.0
    return Steps(timesteps, abar, np.append(abar[1:], 1.0), alphas_cumprod, scale)


def _whole_steps(alphas_cumprod: np.ndarray, timesteps: np.ndarray) -> Steps:
    abar = alphas_cumprod[timesteps.astype(np.int64)]
    return Steps(timesteps, abar, np.append(abar[1:], 1.0), alphas_cumprod)


def _consistency_steps(alphas_cumprod: np.ndarray, num_steps: int) -> Steps:
    if not 1 <= num_steps <= CONSISTENCY_TRAINING_STEPS:
        raise ValueError(
            f"{num_steps} steps: a consistency model takes 1 to {CONSISTENCY_TRAINING_STEPS}, usually 4 to 8"
        )
    trained = np.arange(1, CONSISTENCY_TRAINING_STEPS + 1) * (len(alphas_cumprod) // CONSISTENCY_TRAINING_STEPS) - 1
    chosen = np.floor(np.linspace(0, CONSISTENCY_TRAINING_STEPS, num_steps, endpoint=False)).astype(np.int64)
    return _whole_steps(alphas_cumprod, trained[::-1][chosen].astype(np.float64))


def handover(fraction: float, num_train_timesteps: int = 1000) -> int:
    """The timestep at which ``fraction`` of the schedule is done: diffusers' ``denoising_end`` and ``denoising_start``.

    The first of two experts has the timesteps at or above it, the second those below, so every timestep is someone's.
    Both are parts of the same run: same steps, same sampler.

    Raises:
        ValueError: ``fraction`` outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the hand-over is at {fraction} of the schedule: it must be between 0 and 1")
    return round(num_train_timesteps - fraction * num_train_timesteps)


def skipped_steps(num_steps: int, strength: float) -> int:
    """How many of ``num_steps`` img2img leaves out at the noisy end: it takes the last ``int(num_steps * strength)``.

    Raises:
        ValueError: ``strength`` outside (0, 1], or so small that no step is left.
    """
    if not 0 < strength <= 1:
        raise ValueError(
            f"strength is {strength}: it must be above 0 (the picture stays) and at most 1 (it is redrawn)"
        )
    taken = min(int(num_steps * strength), num_steps)
    if taken == 0:
        raise ValueError(f"strength {strength} of {num_steps} steps leaves none: raise the strength or the steps")
    return num_steps - taken


def add_noise(latents: np.ndarray, noise: np.ndarray, alphas_cumprod: float) -> np.ndarray:
    """sqrt(abar) x_0 + sqrt(1 - abar) noise, in the dtype of ``latents``: Ho et al. 2020, eq. 4."""
    return float(np.sqrt(alphas_cumprod)) * latents + float(np.sqrt(1.0 - alphas_cumprod)) * noise
