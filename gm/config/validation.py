"""Combinations of settings that cannot work, told before anything is loaded."""

import re
import sys

from gm.config.schema import SETTINGS, Config
from gm.config.sections.training import DiffusionConfig
from gm.errors import UsageError

# Settings that do nothing while another one has its default, and what to give instead.
IDLE_WITHOUT = {
    "data.class_data_path": ("data.with_prior_preservation", "--with_prior_preservation"),
    "data.class_prompt": ("data.with_prior_preservation", "--with_prior_preservation"),
    "data.num_class_images": ("data.with_prior_preservation", "--with_prior_preservation"),
    "data.prior_loss_weight": ("data.with_prior_preservation", "--with_prior_preservation"),
    "diffusion.edm_p_mean": ("diffusion.sigma_sampling", "--sigma_sampling edm"),
    "diffusion.edm_p_std": ("diffusion.sigma_sampling", "--sigma_sampling edm"),
    "diffusion.huber_c": ("diffusion.loss_type", "--loss_type huber or smooth_l1"),
    "diffusion.huber_schedule": ("diffusion.loss_type", "--loss_type huber or smooth_l1"),
    "diffusion.refiner_training_invert_schedule": ("diffusion.refiner_training", "--refiner_training"),
    "diffusion.refiner_training_strength": ("diffusion.refiner_training", "--refiner_training"),
    "diffusion.noise_offset_probability": ("diffusion.noise_offset", "--noise_offset"),
    "diffusion.input_perturbation_steps": ("diffusion.input_perturbation", "--input_perturbation"),
}


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


def complete(config: Config, origins: dict[str, str], door: str = "train") -> None:
    """Settings that follow from others: the cache task encodes both parts unless told otherwise, and so on."""
    if config.task == "cache" and not {"cache.latent", "cache.text_embedding"} & set(origins):
        config.cache.latent = config.cache.text_embedding = True
        origins |= dict.fromkeys(("cache.latent", "cache.text_embedding"), "task cache")
        print("note: --task cache writes latents and text embeddings", file=sys.stderr)
    if config.launch.param_fp16 and "launch.precision" not in origins:
        config.launch.precision = "fp16"
        origins["launch.precision"] = "--param_fp16"
    if config.validation.draws or door == "eval":
        for side in ("sample.height", "sample.width"):
            if side not in origins:
                setattr(config.sample, side.partition(".")[2], config.data.resolution)
                origins[side] = "--resolution"


def validate(config: Config, door: str = "train") -> None:
    """Check what several settings must agree on.

    Raises:
        UsageError: naming the flags and the remedy.
    """
    if config.launch.max_device_memory is not None:
        memory_in_gigabytes(config.launch.max_device_memory)
    for path, (needed, remedy) in IDLE_WITHOUT.items():
        if get(config, path) != SETTINGS[path].default and get(config, needed) == SETTINGS[needed].default:
            raise UsageError(f"--{SETTINGS[path].flag} {get(config, path)} does nothing without {remedy}")
    _validate_diffusion(config)
    if config.launch.param_fp16 and config.launch.precision == "bf16":
        raise UsageError("--param_fp16 keeps weights in float16, which --precision bf16 does not take: leave one out")
    if config.optim.relative_step and config.optim.optimizer != "adafactor":
        raise UsageError(f"--relative_step is of --optimizer adafactor, not {config.optim.optimizer}: leave it out")
    _validate_parallel(config)
    if config.dry_run and (door, config.task) != ("train", "train"):
        raise UsageError("--dry_run is for training only: leave it out")
    if door == "sample":
        if not config.sample.prompt.strip():
            raise UsageError('nothing to draw: --prompt "your prompt", or a text file with one prompt a line')
        if config.task not in ("train", "img2img"):
            raise UsageError(f"--task {config.task} is a task of train.py: here it is txt2img or img2img")
        if (config.task == "img2img") != bool(config.sample.img):
            raise UsageError("--task img2img and --img picture.png go together: give both or none")
        _validate_stages(config)
        return
    if door == "eval":
        if config.task != "train":
            raise UsageError(f"--task {config.task} is no task of the evaluation tools: leave it out")
        if not config.model.weight:
            raise UsageError("nothing to evaluate: name a whole model with --weight")
        _validate_eval_timesteps(config)
        return
    if config.task == "img2img":
        raise UsageError(
            "--task img2img is a task of demo/sampling_without_streamlit.py: train.py takes train or cache"
        )
    _validate_data(config)
    if config.task != "check":
        _validate_cache(config)
    _validate_validation(config)


def _validate_data(config: Config) -> None:
    data = config.data
    if not data.path and not data.datasets:
        raise UsageError(f"task {config.task} needs --data_path, the folder of pictures and captions")
    for name, value in (("data_path", data.path), ("instance_prompt", data.instance_prompt)):
        if value and data.datasets:
            raise UsageError(f"--{name} is of a single data set, and data.datasets lists several: give it there")
    if data.with_prior_preservation:
        for name, value in (("class_data_path", data.class_data_path), ("class_prompt", data.class_prompt)):
            if not value:
                raise UsageError(f"--with_prior_preservation needs --{name}")
        if data.datasets:
            raise UsageError(
                "--with_prior_preservation is of a single data set: in data.datasets give the class an entry of its "
                "own, with instance_prompt and loss_weight"
            )
    for number, dataset in enumerate(data.datasets, 1):
        if not dataset.path:
            raise UsageError(f"entry {number} of data.datasets has no path: name its folder or tar shards")
        if dataset.weight is not None and dataset.repeats != 1:
            raise UsageError(f"entry {number} of data.datasets has both repeats and a weight: give one of them")
    if len({dataset.weight is None for dataset in data.datasets}) > 1:
        raise UsageError("data.datasets gives weights to some of its entries only: give one to each, or repeats")


def _validate_stages(config: Config) -> None:
    sample = config.sample
    start, end = sample.denoising_start, sample.denoising_end
    if sample.stage2_weight:
        if end is None:
            raise UsageError(
                "--stage2_weight needs --denoising_end, the share of the schedule that the first stage has: 0.65 for "
                "experts trained with --refiner_training_strength 0.35, 0.8 for the SDXL refiner"
            )
        kind = sample.stage2_prediction_type or config.diffusion.prediction_type
        zero_snr = sample.stage2_rescale_betas_zero_snr
        if kind == "epsilon" and (config.diffusion.rescale_betas_zero_snr if zero_snr is None else zero_snr):
            raise UsageError(
                "a second stage that predicts epsilon was not trained with zero terminal SNR: give "
                "--stage2_rescale_betas_zero_snr False, or --stage2_prediction_type v_prediction"
            )
    else:
        for name in ("stage2_prediction_type", "stage2_rescale_betas_zero_snr"):
            if getattr(sample, name) is not None:
                raise UsageError(f"--{name} does nothing without --stage2_weight")
    if start is not None:
        if sample.img:
            raise UsageError("--denoising_start goes on with latents, not with --img: use --strength")
        if not sample.init_latent_path:
            raise UsageError(
                "--denoising_start goes on with latents that are partly drawn: name them with --init_latent_path, as "
                "--denoising_end and --save_latent left them"
            )
        if end is not None and start >= end:
            raise UsageError(f"--denoising_start {start} must be below --denoising_end {end}")


def _validate_cache(config: Config) -> None:
    latent, text = config.cache.latent, config.cache.text_embedding
    if latent != text:
        on, off = ("latent", "text_embedding") if latent else ("text_embedding", "latent")
        raise UsageError(f"--cache_{on} is on and --cache_{off} is off: give both the same value")
    if config.train.text_encoders and text:
        raise UsageError(
            "--train_text_encoder changes the states that --cache_text_embedding keeps: leave one of them out"
        )
    if config.train.text_encoders and config.validation.draws:
        flag = "infer_during_train" if config.validation.infer_during_train else "validation_using_datasets"
        raise UsageError(
            f"--{flag} draws with the text encoders of --weight, which --train_text_encoder changes: "
            "leave one of them out"
        )
    if config.launch.data_sink and config.launch.multi_graph and not (latent or config.train.text_encoders):
        raise UsageError(
            "--data_sink reads ahead of the steps, and the encoders of --multi_graph cannot run beside them: "
            "train from the cache, or leave one of them out"
        )
    if config.task == "cache" and not latent:
        raise UsageError("task cache has nothing to write: turn --cache_latent and --cache_text_embedding on")


def _validate_parallel(config: Config) -> None:
    parallel, optimizer = config.parallel, config.optim.optimizer
    if parallel.zero_stage and optimizer == "adafactor":
        raise UsageError(
            f"--zero_stage {parallel.zero_stage} shares out single numbers, and --optimizer adafactor takes whole "
            "tensors: take adamw or lion, or leave --zero_stage out"
        )
    if parallel.zero_stage and (parallel.ici_tensor_parallelism != 1 or parallel.dcn_tensor_parallelism != 1):
        raise UsageError(
            f"--zero_stage {parallel.zero_stage} does not go with axis tensor: leave its degrees at 1, or --zero_stage "
            "out"
        )
    if parallel.dry_run_devices and not config.dry_run:
        raise UsageError("--dry_run_devices is for --dry_run: leave it out")


def _validate_validation(config: Config) -> None:
    validation = config.validation
    if validation.infer_during_train and not config.sample.prompt.strip():
        raise UsageError(
            '--infer_during_train has nothing to draw: --validation_prompt "your prompt", or a text file with one '
            "prompt a line"
        )
    if validation.draws and not config.model.weight:
        flag = "infer_during_train" if validation.infer_during_train else "validation_using_datasets"
        raise UsageError(f"--{flag} draws with the autoencoder of --weight: name a whole model")
    for flag in ("clip_weight", "other_stage_weight"):
        if getattr(validation, flag) and not validation.infer_during_train:
            raise UsageError(f"--validation_{flag} does nothing without --infer_during_train and --validation_prompt")
    if validation.other_stage_weight and not config.diffusion.refiner_training:
        raise UsageError("--validation_other_stage_weight is for one of two experts: give --refiner_training too")
    if validation.strength is not None and not validation.using_datasets:
        raise UsageError("--validation_strength does nothing without --validation_using_datasets")
    _validate_eval_timesteps(config)


def _validate_eval_timesteps(config: Config) -> None:
    if config.validation.eval_timesteps > config.diffusion.num_train_timesteps:
        raise UsageError(
            f"--eval_timesteps {config.validation.eval_timesteps}: there are {config.diffusion.num_train_timesteps}"
        )


def _validate_diffusion(config: Config) -> None:
    diffusion = config.diffusion
    if diffusion.rescale_betas_zero_snr and diffusion.prediction_type == "epsilon":
        raise UsageError(
            "epsilon prediction cannot work with zero terminal SNR (the last timestep is pure noise): "
            "use --prediction_type v_prediction, or --rescale_betas_zero_snr False"
        )
    if diffusion.beta_start >= diffusion.beta_end:
        raise UsageError(f"--beta_start {diffusion.beta_start} must be below --beta_end {diffusion.beta_end}")
    _validate_weighting(diffusion)
    stage = _validate_experts(diffusion)
    _validate_bias(diffusion, stage)
    if diffusion.sigma_sampling == "edm" and diffusion.rescale_betas_zero_snr:
        raise UsageError(
            "--sigma_sampling edm never draws the pure noise that --rescale_betas_zero_snr is there for: "
            "leave one of them out"
        )


def _validate_weighting(diffusion: DiffusionConfig) -> None:
    weighting, gamma = diffusion.loss_weighting, diffusion.snr_gamma
    if weighting in ("min_snr", "soft_min_snr") and gamma is None:
        usual = {"min_snr": 5.0, "soft_min_snr": 4.0}[weighting]
        raise UsageError(f"--loss_weighting {weighting} needs --snr_gamma: {usual} is usual")
    if weighting == "debiased" and gamma is not None:
        raise UsageError("--loss_weighting debiased has no gamma: leave --snr_gamma out")
    if diffusion.loss_weight_floor and weighting is None and gamma is None:
        raise UsageError(
            "--loss_weight_floor does nothing without weights to raise: give --snr_gamma or --loss_weighting"
        )


def _validate_experts(diffusion: DiffusionConfig) -> tuple[int, int]:
    """First timestep trained, and first one after the last."""
    length = diffusion.num_train_timesteps
    if not diffusion.refiner_training:
        return 0, length
    boundary = round(diffusion.refiner_training_strength * length)
    if not 0 < boundary < length:
        raise UsageError(
            f"--refiner_training_strength {diffusion.refiner_training_strength} leaves one stage none of the {length} "
            "timesteps: choose one further from 0 and 1"
        )
    return (boundary, length) if diffusion.refiner_training_invert_schedule else (0, boundary)


def _validate_bias(diffusion: DiffusionConfig, stage: tuple[int, int]) -> None:
    strategy, length = diffusion.timestep_bias_strategy, diffusion.num_train_timesteps
    if strategy == "none":
        return
    if diffusion.sigma_sampling == "edm":
        raise UsageError(
            f"--timestep_bias_strategy {strategy} is for --sigma_sampling discrete: "
            "with edm, move --edm_p_mean (down for little noise, up for much)"
        )
    if strategy == "range":
        begin, end = diffusion.timestep_bias_begin, diffusion.timestep_bias_end
        if begin >= end:
            raise UsageError(f"--timestep_bias_begin {begin} must be below --timestep_bias_end {end}")
        if end > length:
            raise UsageError(
                f"--timestep_bias_end {end} is beyond the last of the {length} timesteps: at most {length}"
            )
    else:
        count = int(diffusion.timestep_bias_portion * length)
        begin, end = (0, count) if strategy == "earlier" else (length - count, length)
    first, after = stage
    biased = max(0, min(end, after) - max(begin, first))
    if diffusion.refiner_training and biased in (0, after - first):
        raise UsageError(
            f"the timestep bias weighs {'none' if biased == 0 else 'all'} of this stage's timesteps {first} to "
            f"{after - 1}: bias a part of them, or leave --timestep_bias_strategy out"
        )
