"""Learning rates as pure functions of the optimizer step: those of diffusers, by its names."""

import math

SCHEDULES = ("constant", "linear", "cosine", "polynomial")


def learning_rate(
    schedule: str,
    step: int,
    peak: float,
    warmup_steps: int,
    total_steps: int,
    end: float = 0.0,
    power: float = 1.0,
) -> float:
    """The rate of update ``step`` (from 0) of ``total_steps``.

    Rises linearly from 0 over the warm-up, is ``peak`` at step ``warmup_steps``, then stays ("constant") or falls to
    ``end`` at ``total_steps``: linearly, along half a cosine (Loshchilov & Hutter 2016, arXiv 1608.03983, eq. 5), or as
    what is left of the way to the ``power`` ("polynomial").
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    left = 1.0 - min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    if schedule == "constant":
        return peak
    if schedule == "linear":
        return end + (peak - end) * left
    if schedule == "cosine":
        return end + (peak - end) * 0.5 * (1 - math.cos(math.pi * left))
    if schedule == "polynomial":
        return end + (peak - end) * left**power
    raise ValueError(f"no schedule {schedule!r}: one of {', '.join(SCHEDULES)}")
