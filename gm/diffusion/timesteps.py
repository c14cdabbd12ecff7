"""Which noise levels a training step draws: weights over the T timesteps, or a density of sigma, and draws from them.

Every restriction is a factor on the weights, applied before anything is drawn, so it holds at any batch size.
"""

import math
from statistics import NormalDist

import numpy as np

STRATEGIES = ("none", "earlier", "later", "range")


def bias_weights(
    strategy: str = "none",
    num_train_timesteps: int = 1000,
    multiplier: float = 1.0,
    begin: int = 0,
    end: int = 1000,
    portion: float = 0.25,
) -> np.ndarray:
    """Probability of each timestep (T,), as diffusers' ``--timestep_bias_*`` has it (its pull request 5094).

    ``earlier`` weighs the first ``int(portion * T)`` timesteps (the least noisy) by ``multiplier``, ``later`` the last
    ones, ``range`` those in ``[begin, end)``: ``end`` is exclusive, although the help text of diffusers says otherwise.

    Raises:
        ValueError: unknown strategy, multiplier <= 0, an empty or impossible range or portion.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"timestep bias strategy {strategy!r} is unknown: use one of {', '.join(STRATEGIES)}")
    weights = np.ones(num_train_timesteps, np.float64)
    if strategy == "none":
        return weights / num_train_timesteps
    if not multiplier > 0:
        raise ValueError(
            f"timestep bias multiplier is {multiplier}: it must be above 0; to leave timesteps out, restrict the range"
        )
    if strategy == "range":
        if not 0 <= begin < end <= num_train_timesteps:
            raise ValueError(
                f"timestep bias range [{begin}, {end}) must satisfy 0 <= begin < end <= {num_train_timesteps}"
            )
        weights[begin:end] *= multiplier
    else:
        if not 0 < portion <= 1:
            raise ValueError(f"timestep bias portion is {portion}: it must be above 0 and at most 1")
        count = int(portion * num_train_timesteps)
        weights[slice(count) if strategy == "earlier" else slice(num_train_timesteps - count, None)] *= multiplier
    return weights / weights.sum()


def expert_range(num_train_timesteps: int = 1000, strength: float = 0.2, invert: bool = False) -> tuple[int, int]:
    """First timestep, and first one after the last, of a stage of two experts: SimpleTuner's ``--refiner_training``.

    The second stage (refiner) has the ``round(strength * T)`` least noisy timesteps; ``invert``
    (``--refiner_training_invert_schedule``) is the first stage, which has all the others.

    Raises:
        ValueError: ``strength`` leaves one of the stages without a timestep.
    """
    boundary = round(strength * num_train_timesteps)
    if not 0 < boundary < num_train_timesteps:
        raise ValueError(
            f"refiner training strength {strength} leaves a stage without timesteps: choose one between 0 and 1"
        )
    return (boundary, num_train_timesteps) if invert else (0, boundary)


def range_mask(num_train_timesteps: int, begin: int, end: int) -> np.ndarray:
    """The timesteps from ``begin`` up to, and without, ``end`` as bool (T,), to multiply on the weights."""
    timesteps = np.arange(num_train_timesteps)
    return (begin <= timesteps) & (timesteps < end)


def draw(weights: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Timesteps (B,) int64 from ``uniforms`` (B,) in [0, 1) by the inverse of the cumulative distribution.

    ``weights`` (T,) need not sum to 1; a timestep of weight 0 is never drawn.

    Raises:
        ValueError: no timestep has a weight, or one is negative; a uniform outside [0, 1).
    """
    weights, uniforms = np.asarray(weights, np.float64), np.asarray(uniforms, np.float64)
    if (weights < 0).any() or not weights.any():
        raise ValueError("no timestep can be drawn: the weights must not be negative nor all 0")
    _check_uniforms(uniforms)
    cumulative = np.cumsum(weights)
    return np.searchsorted(cumulative / cumulative[-1], uniforms, side="right").astype(np.int64)


def draw_sigmas(
    uniforms: np.ndarray, p_mean: float = -1.2, p_std: float = 1.2, low: float = 0.0, high: float = math.inf
) -> np.ndarray:
    """Noise levels (B,) from ``uniforms`` (B,) in [0, 1): ln sigma is normal, cut off outside [``low``, ``high``].

    Karras et al. 2022 (arXiv 2206.00364), table 1: P_mean -1.2 and P_std 1.2. By the inverse of the cumulative
    distribution, so that equal parts of [0, 1) have equal shares of the draws.

    Raises:
        ValueError: the distribution has no mass between ``low`` and ``high``; a uniform outside [0, 1).
    """
    uniforms = np.asarray(uniforms, np.float64)
    _check_uniforms(uniforms)
    normal = NormalDist(p_mean, p_std)
    first = normal.cdf(math.log(low)) if low > 0 else 0.0
    last = normal.cdf(math.log(high)) if high < math.inf else 1.0
    if not first < last:
        raise ValueError(
            f"no noise level between {low:.4g} and {high:.4g} can be drawn with P_mean {p_mean} and P_std {p_std}: "
            "move the mean there"
        )
    shares = np.clip(first + uniforms * (last - first), np.finfo(np.float64).tiny, np.nextafter(1, 0))
    # the inverse is only as exact as its rounding
    return np.clip(np.exp([normal.inv_cdf(share) for share in shares]), low, high)


def stratify(uniforms: np.ndarray, strata: np.ndarray, total: int) -> np.ndarray:
    """Move uniform numbers (B,) into equal parts of [0, 1): number i into the ``strata[i]``-th of ``total``.

    When the samples of a global batch have one part each, they cover the timesteps evenly, whatever the number of
    ranks (SimpleTuner's segmented selection does it on each device alone), and each still is uniform by itself.
    """
    uniforms, strata = np.asarray(uniforms, np.float64), np.asarray(strata)
    # the sum can round up to the next stratum, whose start belongs to another sample
    return np.minimum((strata + uniforms) / total, np.nextafter((strata + 1) / total, 0))


def _check_uniforms(uniforms: np.ndarray) -> None:
    if ((uniforms < 0) | (uniforms >= 1)).any():
        raise ValueError("uniform numbers must be at least 0 and below 1")
