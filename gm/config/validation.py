"""Combinations of settings that cannot work, told before anything is loaded."""

import re
import sys

from gm.config.schema import NOT_IN_THIS_RELEASE, SETTINGS, Config
from gm.errors import UsageError


def get(config: Config, path: str) -> object:
    """The value at a dotted path."""
    section, _, leaf = path.rpartition(".")
    return getattr(getattr(config, section) if section else config, leaf)


def memory_in_gigabytes(text: str) -> float:
    """``"59GB"`` -> 59.0.

    Raises:
        UsageError: anything else than a positive number followed by GB.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*GB\s*", text, flags=re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise UsageError(f'--max_device_memory takes gigabytes, such as "59GB", not {text!r}')
    return float(match[1])


def complete(config: Config, origins: dict[str, str]) -> None:
    """Settings that follow from others: the cache task encodes both parts unless told otherwise."""
    if config.task == "cache" and not {"cache.latent", "cache.text_embedding"} & set(origins):
        config.cache.latent = config.cache.text_embedding = True
        origins |= dict.fromkeys(("cache.latent", "cache.text_embedding"), "task cache")
        print("note: --task cache writes latents and text embeddings", file=sys.stderr)


def validate(config: Config, door: str = "train") -> None:
    """Check what several settings must agree on.

    Raises:
        UsageError: naming the flags and the remedy.
    """
    for path, values in NOT_IN_THIS_RELEASE.items():
        if get(config, path) not in values:
            remedy = " or ".join(map(str, values))
            raise UsageError(
                f"--{SETTINGS[path].flag} {get(config, path)} is not in this release: leave it at {remedy}"
            )
    if config.launch.max_device_memory is not None:
        memory_in_gigabytes(config.launch.max_device_memory)
    _validate_diffusion(config)
    if config.dry_run and (door, config.task) != ("train", "train"):
        raise UsageError("--dry_run is for training only: leave it out")
    if door == "sample":
        if not config.sample.prompt.strip():
            raise UsageError('nothing to draw: --prompt "your prompt", or a text file with one prompt a line')
        if config.task not in ("train", "img2img"):
            raise UsageError(f"--task {config.task} is a task of train.py: here it is txt2img or img2img")
        if (config.task == "img2img") != bool(config.sample.img):
            raise UsageError("--task img2img and --img picture.png go together: give both or none")
        return
    if config.task == "img2img":
        raise UsageError(
            "--task img2img is a task of demo/sampling_without_streamlit.py: train.py takes train or cache"
        )
    if not config.data.path:
        raise UsageError(f"task {config.task} needs --data_path, the folder of pictures and captions")
    if config.task != "check":
        _validate_cache(config)


def _validate_cache(config: Config) -> None:
    latent, text = config.cache.latent, config.cache.text_embedding
    if latent != text:
        on, off = ("latent", "text_embedding") if latent else ("text_embedding", "latent")
        raise UsageError(f"--cache_{on} is on and --cache_{off} is off: give both the same value")
    if config.task == "cache" and not latent:
        raise UsageError("task cache has nothing to write: turn --cache_latent and --cache_text_embedding on")


def _validate_diffusion(config: Config) -> None:
    diffusion = config.diffusion
    if diffusion.rescale_betas_zero_snr and diffusion.prediction_type == "epsilon":
        raise UsageError(
            "epsilon prediction cannot work with zero terminal SNR (the last timestep is pure noise): "
            "use --prediction_type v_prediction, or --rescale_betas_zero_snr False"
        )
    if diffusion.beta_start >= diffusion.beta_end:
        raise UsageError(f"--beta_start {diffusion.beta_start} must be below --beta_end {diffusion.beta_end}")
    if diffusion.timestep_bias_strategy == "range":
        begin, end, length = diffusion.timestep_bias_begin, diffusion.timestep_bias_end, diffusion.num_train_timesteps
        if begin >= end:
            raise UsageError(f"--timestep_bias_begin {begin} must be below --timestep_bias_end {end}")
        if end > length:
            raise UsageError(
                f"--timestep_bias_end {end} is beyond the last of the {length} timesteps: at most {length}"
            )
