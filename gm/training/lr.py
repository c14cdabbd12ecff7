"""Learning rates as pure functions of the optimizer step."""

import math

SCHEDULES = ("constant", "linear", "cosine", "polynomial")
POWER = 2.0  # of the polynomial


def learning_rate(schedule: str, step: int, peak: float, warmup_steps: int, total_steps: int) -> float:
    """The rate of update ``step`` (from 0) of ``total_steps``.

    Rises linearly over the warm-up, reaching ``peak`` at its end, then stays ("constant") or falls to 0 at
    ``total_steps``: linearly, along half a cosine (Loshchilov & Hutter 2016, arXiv 1608.03983, eq. 5), as a parabola.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    if schedule == "constant":
        return peak
    if schedule == "linear":
        return peak * (1 - done)
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    if schedule == "polynomial":
        return peak * (1 - done) ** POWER
    raise ValueError(f"no schedule {schedule!r}: one of {', '.join(SCHEDULES)}")
