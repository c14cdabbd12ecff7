"""Which timesteps a training step draws: weights over the T timesteps, and draws from them.

Every restriction is a factor on the weights, applied before anything is drawn, so it holds at any batch size.
"""

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


def expert_mask(num_train_timesteps: int = 1000, strength: float = 0.2, invert: bool = False) -> np.ndarray:
    """The timesteps a stage of two experts is trained on, bool (T,): SimpleTuner's ``--refiner_training``.

    The second stage (refiner) has the ``round(strength * T)`` least noisy timesteps; ``invert``
    (``--refiner_training_invert_schedule``) is the first stage, which has all the others. Multiply it on the weights.

    Raises:
        ValueError: ``strength`` leaves one of the stages without a timestep.
    """
    boundary = round(strength * num_train_timesteps)
    if not 0 < boundary < num_train_timesteps:
        raise ValueError(
            f"refiner training strength {strength} leaves a stage without timesteps: choose one between 0 and 1"
        )
    second_stage = np.arange(num_train_timesteps) < boundary
    return ~second_stage if invert else second_stage


def draw(weights: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Timesteps (B,) int64 from ``uniforms`` (B,) in [0, 1) by the inverse of the cumulative distribution.

    ``weights`` (T,) need not sum to 1; a timestep of weight 0 is never drawn.

    Raises:
        ValueError: no timestep has a weight, or one is negative; a uniform outside [0, 1).
    """
    weights, uniforms = np.asarray(weights, np.float64), np.asarray(uniforms, np.float64)
    if (weights < 0).any() or not weights.any():
        raise ValueError("no timestep can be drawn: the weights must not be negative nor all 0")
    if ((uniforms < 0) | (uniforms >= 1)).any():
        raise ValueError("uniform numbers must be at least 0 and below 1")
    cumulative = np.cumsum(weights)
    return np.searchsorted(cumulative / cumulative[-1], uniforms, side="right").astype(np.int64)


def stratify(uniforms: np.ndarray, first: int, total: int) -> np.ndarray:
    """Move one uniform number each into the strata of a global batch: (B,) -> (B,).

    Number ``i`` here is that of sample ``first + i`` of ``total`` and lands in the ``(first + i)``-th of ``total``
    equal parts of [0, 1), so together the samples cover the timesteps evenly, whatever the number of ranks
    (SimpleTuner's segmented selection does it on each device alone).
    """
    uniforms = np.asarray(uniforms, np.float64)
    # the sum can round up to the next stratum, whose start belongs to another sample
    return np.minimum(
        (first + np.arange(len(uniforms)) + uniforms) / total,
        np.nextafter((first + np.arange(len(uniforms)) + 1) / total, 0),
    )
