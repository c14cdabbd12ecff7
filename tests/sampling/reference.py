"""What the comparisons with diffusers' pipelines have in common."""

import diffusers
import numpy as np
import torch
from diffusers.loaders import single_file_utils as single_file

from gm.models.architecture import TINY_SDXL

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
    "lcm": "LCMScheduler",
}
LEVEL = 1 / 8  # mean difference in levels of 255: half a level flips few of the pixels


def scheduler(name: str, **options):
    """diffusers' scheduler that our sampler of this name follows, with the schedule of the released models."""
    return getattr(diffusers, SCHEDULERS[name]).from_config({**SCHEDULE, **options})


def weights_of(cell) -> dict[str, torch.Tensor]:
    """The weights of a network of ours, under the original names."""
    return {parameter.name: torch.from_numpy(parameter.asnumpy().copy()) for parameter in cell.get_parameters()}


def autoencoder(ours, **options) -> diffusers.AutoencoderKL:
    """diffusers' autoencoder with the weights of the tiny SDXL's."""
    arch = TINY_SDXL.autoencoder
    vae = diffusers.AutoencoderKL(
        block_out_channels=arch.channels,
        layers_per_block=arch.blocks_per_level,
        norm_num_groups=arch.norm_groups,
        down_block_types=["DownEncoderBlock2D"] * len(arch.channels),
        up_block_types=["UpDecoderBlock2D"] * len(arch.channels),
        latent_channels=arch.latent_channels,
        scaling_factor=arch.scale_factor,
        **options,
    )
    vae.load_state_dict(single_file.convert_ldm_vae_checkpoint(weights_of(ours), vae.config))
    return vae.eval()


def assert_same_pictures(ours, theirs) -> None:
    for one, other in zip(ours, theirs, strict=True):
        one, other = (np.asarray(picture, np.float64) for picture in (one, other))
        assert one.std() > 5  # not a flat picture, which would say nothing
        assert np.abs(one - other).mean() <= LEVEL
