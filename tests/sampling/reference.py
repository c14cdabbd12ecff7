"""What the comparisons with diffusers' pipelines have in common."""

import diffusers
import numpy as np

SCHEDULE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
    "clip_sample": False, "set_alpha_to_one": False,
}  # fmt: skip
SCHEDULERS = {
    "euler": "EulerDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lms": "LMSDiscreteScheduler",
}
LEVEL = 1 / 8  # mean difference in levels of 255: half a level flips few of the pixels


def scheduler(name: str, **options):
    """diffusers' scheduler that our sampler of this name follows, with the schedule of the released models."""
    return getattr(diffusers, SCHEDULERS[name]).from_config({**SCHEDULE, **options})


def assert_same_pictures(ours, theirs) -> None:
    for one, other in zip(ours, theirs, strict=True):
        one, other = (np.asarray(picture, np.float64) for picture in (one, other))
        assert one.std() > 5  # not a flat picture, which would say nothing
        assert np.abs(one - other).mean() <= LEVEL
