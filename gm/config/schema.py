"""The one schema: every setting of the suite with its type, default, unit, bounds and one line of help.

A setting ``section.leaf`` is a key of the YAML files, ``section.leaf=value`` on the command line and a flag, which is
the leaf's name unless ``flag`` says otherwise. ``--help`` and ``docs/configuration.md`` are made from this file.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any


def setting(default: Any, help: str, **properties: Any) -> Any:
    """A dataclass field of the schema.

    ``properties``: ``unit``; ``choices`` (allowed values); ``at_least``, ``above``, ``at_most``, ``below`` (bounds of
    a number); ``multiple_of``; ``flag`` (name on the command line where the leaf alone would say too little).
    """
    return field(default=default, metadata={"help": help, **properties})


@dataclass
class ModelConfig:
    weight: str = setting("", "weights to start from: .ckpt, .safetensors or a diffusers folder; empty: random weights")
    architecture: str = setting(
        "sdxl-base", "networks to build when --weight is empty (a file says its own)", choices=("sdxl-base", "tiny")
    )
    attention: str = setting(
        "auto",
        "auto and flash take flash attention where the device has it and a layer fits; math: nowhere",
        choices=("auto", "flash", "math"),
    )
    tokenizer: str | None = setting(
        "openai/clip-vit-large-patch14",
        "tokenizer of the text encoders: a local folder with vocab.json and merges.txt, or a hub name; a diffusers "
        "folder given as --weight has its own",
    )
    tokenizer_2: str | None = setting(
        None, "tokenizer of the second text encoder; default: that of the first, as in SDXL"
    )


@dataclass
class DataConfig:
    path: str = setting("", "folder of pictures and captions", flag="data_path")
    resolution: int = setting(1024, "side of the square training picture", unit="pixels", at_least=32, multiple_of=32)
    crop: str = setting("center", "where the square is cut from the resized picture", choices=("center", "random"))
    buckets: bool = setting(
        False, "train each picture at the size whose aspect ratio is nearest to its own, not at the square"
    )
    random_flip: bool = setting(False, "mirror half of the pictures, chosen per sample and epoch")
    per_batch_size: int = setting(1, "samples per step and device", unit="samples", at_least=1)
    num_parallel_workers: int = setting(2, "threads that read and transform pictures", unit="threads", at_least=1)
    caption_dropout: float = setting(
        0.0, "share of captions replaced by the empty one, for guidance", unit="0 to 1", at_least=0, at_most=1
    )
    on_bad_sample: str = setting(
        "error", "a picture that cannot be read: stop, or go on without it", choices=("error", "skip")
    )
    missing_caption: str = setting(
        "error",
        "a picture without a caption: stop, train it unconditionally, or use its file name",
        choices=("error", "empty", "filename"),
    )
    aesthetic_score: float = setting(6.0, "SDXL refiner: the score it is told all pictures have", at_least=0)
    shuffle: bool = setting(True, "a new order of the samples in every epoch")
    drop_last: bool = setting(False, "leave out an epoch's last samples when they do not fill a batch")


@dataclass
class CacheConfig:
    latent: bool = setting(
        False,
        "task cache: write the autoencoder's output; task train: read it, build no autoencoder",
        flag="cache_latent",
    )
    text_embedding: bool = setting(
        False, "the same for the text encoders; must agree with --cache_latent", flag="cache_text_embedding"
    )
    path: str = setting("./cache_data", "folder of the cache", flag="cache_path")
    dtype: str = setting("fp16", "precision the cache is kept in", choices=("fp16", "fp32"), flag="cache_dtype")
    variants: int = setting(
        1, "random crops and flips kept of each picture", unit="entries", at_least=1, flag="cache_variants"
    )


@dataclass
class DiffusionConfig:
    prediction_type: str = setting(
        "epsilon",
        "what the UNet predicts: the noise, the velocity or the picture",
        choices=("epsilon", "v_prediction", "sample"),
    )
    beta_schedule: str = setting(
        "scaled_linear", "shape of the noise schedule", choices=("scaled_linear", "linear", "cosine")
    )
    beta_start: float = setting(0.00085, "first beta", above=0, below=1)
    beta_end: float = setting(0.012, "last beta", above=0, below=1)
    num_train_timesteps: int = setting(1000, "T, the length of the noise schedule", unit="timesteps", at_least=1)
    rescale_betas_zero_snr: bool = setting(False, "zero terminal SNR (arXiv 2305.08891); not with epsilon prediction")
    sigma_sampling: str = setting(
        "discrete",
        "noise levels of the T timesteps; edm: ln sigma normal, with the fractional timestep that belongs to sigma "
        "(arXiv 2206.00364)",
        choices=("discrete", "edm"),
    )
    edm_p_mean: float = setting(-1.2, "sigma_sampling edm: mean of ln sigma")
    edm_p_std: float = setting(1.2, "sigma_sampling edm: standard deviation of ln sigma", above=0)
    snr_gamma: float | None = setting(
        None, "gamma of min-SNR weighting (arXiv 2303.09556); alone it means --loss_weighting min_snr", above=0
    )
    loss_weighting: str | None = setting(
        None,
        "how timesteps count in the loss: min_snr (--snr_gamma 5.0 is the paper's), soft_min_snr (arXiv 2401.11605; "
        "4.0) or debiased (arXiv 2310.08442; no gamma)",
        choices=("min_snr", "soft_min_snr", "debiased"),
    )
    loss_weight_floor: float = setting(
        0.0, "smallest weight of a timestep: with zero terminal SNR the last one weighs 0 otherwise", at_least=0
    )
    loss_type: str = setting(
        "l2",
        "squared error, or pseudo-Huber losses that outliers move less (arXiv 2403.16728)",
        choices=("l2", "huber", "smooth_l1"),
    )
    huber_c: float = setting(0.1, "error from which the loss is linear, of much noise", above=0)
    huber_schedule: str = setting(
        "snr", "how huber_c falls from 1 with growing noise, or constant", choices=("constant", "exponential", "snr")
    )
    stratified_timesteps: bool = setting(
        False, "spread the noise levels of each step evenly over all its samples, of all devices"
    )
    timestep_bias_strategy: str = setting(
        "none", "which timesteps are drawn more (or less) often", choices=("none", "earlier", "later", "range")
    )
    timestep_bias_multiplier: float = setting(1.0, "weight of the biased timesteps; the others weigh 1", above=0)
    timestep_bias_begin: int = setting(0, "strategy range: first biased timestep", unit="timestep", at_least=0)
    timestep_bias_end: int = setting(
        1000, "strategy range: first timestep after the biased ones", unit="timestep", at_least=0
    )
    timestep_bias_portion: float = setting(
        0.25, "strategies earlier and later: share of the timesteps that is biased", unit="0 to 1", above=0, at_most=1
    )
    refiner_training: bool = setting(False, "train one of two experts: the second stage, on the least noisy timesteps")
    refiner_training_strength: float = setting(
        0.2, "share of the timesteps that is the second stage's", unit="0 to 1", above=0, below=1
    )
    refiner_training_invert_schedule: bool = setting(
        False, "with --refiner_training: train the first stage, on all the other timesteps"
    )
    noise_offset: float = setting(0.0, "strength of the per-channel constant added to the noise", at_least=0)
    noise_offset_probability: float = setting(
        1.0, "share of samples whose noise is offset", unit="0 to 1", at_least=0, at_most=1
    )
    input_perturbation: float = setting(
        0.0, "strength of noise added to the input only (arXiv 2301.11706); 0.1 is the paper's", at_least=0
    )
    input_perturbation_steps: int = setting(
        0, "steps over which input_perturbation fades to nothing; 0: it does not", unit="steps", at_least=0
    )


@dataclass
class OptimConfig:
    optimizer: str = setting(
        "adamw",
        "adamw: two moments a weight; lion: one (arXiv 2302.06675); adafactor: next to none (arXiv 1804.04235)",
        choices=("adamw", "adafactor", "lion"),
    )
    learning_rate: float = setting(1e-5, "peak learning rate", at_least=0)
    beta1: float = setting(0.9, "decay of the first moment of adamw and lion", at_least=0, below=1)
    beta2: float | None = setting(
        None, "decay of the second moment of adamw, default 0.999; of lion's moment, 0.99", at_least=0, below=1
    )
    epsilon: float = setting(1e-8, "AdamW's term against division by zero", above=0)
    weight_decay: float = setting(1e-2, "decoupled weight decay; norms and biases have none", at_least=0)
    lr_scheduler: str = setting(
        "constant",
        "course of the learning rate after the warm-up",
        choices=("constant", "linear", "cosine", "polynomial"),
    )
    lr_warmup_steps: int = setting(0, "steps from 0 to the peak learning rate", unit="steps", at_least=0)
    lr_end: float = setting(0.0, "learning rate after the last step of linear, cosine and polynomial", at_least=0)
    lr_power: float = setting(1.0, "exponent of polynomial", above=0)
    relative_step: bool = setting(
        False, "adafactor: multiply the learning rate by the size of each tensor, and let it fall as 1/sqrt(step)"
    )
    clip_grad: bool = setting(False, "scale gradients down to --max_grad_norm")
    max_grad_norm: float = setting(1.0, "largest global norm of the gradients with --clip_grad", above=0)
    gradient_accumulation_steps: int = setting(1, "batches per update of the weights", unit="batches", at_least=1)
    use_ema: bool = setting(False, "keep, and save, an exponential moving average of the weights")
    ema_decay: float = setting(0.9999, "decay of the moving average", at_least=0, below=1)
    ema_update_interval: int = setting(1, "updates of the weights to one of the average", unit="steps", at_least=1)
    scale_lr: bool = setting(False, "multiply the learning rate by batch size, accumulation steps and devices")


@dataclass
class TrainConfig:
    max_train_steps: int = setting(1000, "updates of the weights", unit="steps", at_least=1)
    seed: int = setting(42, "all randomness of a run follows from it", at_least=0)
    save_path: str = setting("./runs", "folder of the runs")
    save_path_with_time: bool = setting(True, "put each run into a new folder named by its start time")
    run_name: str = setting("", "name of the run's folder in --save_path; beats the start time")
    save_ckpt_interval: int = setting(
        1000, "steps between checkpoints; the last step is always saved", unit="steps", at_least=1
    )
    checkpoint_every: int | None = setting(
        None,
        "samples between checkpoints, besides those of --save_ckpt_interval: one is written when a step reaches or "
        "passes a multiple",
        unit="samples",
        at_least=1,
    )
    max_num_ckpt: int | None = setting(
        None, "keep only this many of the newest checkpoints", unit="checkpoints", at_least=1
    )
    text_encoders: bool = setting(
        False, "train the text encoders together with the UNet; not from cached text", flag="train_text_encoder"
    )
    recompute: str = setting(
        "none",
        "compute the states of these blocks again for the gradient instead of keeping them: less memory, more time",
        choices=("none", "transformer", "all"),
    )
    log_interval: int = setting(
        1, "steps after which losses are fetched from the device; every step is logged", unit="steps", at_least=1
    )
    resume: str | None = setting(None, "go on from a state folder, or from the run's latest one: latest")
    peak_tflops: float | None = setting(
        None,
        "what the device can do at best in the precision used; MFU is logged relative to it",
        unit="TFLOP/s",
        above=0,
    )


@dataclass
class ValidationConfig:
    infer_during_train: bool = setting(
        False,
        "draw pictures during training, always of the same seeds: those that section sample describes, which "
        "--validation_prompt, --validation_negative_prompt, --validation_sampler, --validation_steps, "
        "--validation_guidance, --validation_seed and --num_validation_images set too",
    )
    infer_interval: int = setting(
        500, "steps between them; they are drawn before the first and after the last step too", unit="steps", at_least=1
    )
    eval_data_path: str = setting("", "folder of held-out pictures and captions for the evaluation loss; empty: none")
    eval_interval: int = setting(
        500,
        "steps between evaluations; the weights before the first and after the last step are evaluated too",
        unit="steps",
        at_least=1,
    )
    num_eval_images: int = setting(
        16, "held-out pictures to evaluate on, spread evenly over the folder", unit="pictures", at_least=1
    )
    eval_timesteps: int = setting(
        28, "fixed timesteps each of them is evaluated at, from T - 1 down in equal parts", unit="timesteps", at_least=1
    )


@dataclass
class LaunchConfig:
    device_target: str = setting(
        "auto", "auto takes Ascend where it can be loaded, else the CPU", choices=("auto", "Ascend", "CPU")
    )
    ms_mode: int = setting(0, "0: compiled graph; 1: PyNative, for debugging", choices=(0, 1))
    max_device_memory: str | None = setting(None, 'memory to take of an Ascend device, such as "59GB"', unit="GB")
    compile_cache: str = setting(
        "", "folder that keeps compiled graphs, so that the same training or sampling starts sooner; empty: none"
    )
    threads: int | None = setting(
        None, "CPU cores this process keeps to; default: all it may use", unit="cores", at_least=1
    )
    deterministic: bool = setting(
        True, "take only kernels that give the same bits every time; costs some speed on Ascend"
    )
    precision: str = setting(
        "fp32",
        "arithmetic of the UNet; weights, norms, softmax, loss and the other networks stay float32",
        choices=("fp32", "fp16", "bf16"),
    )
    param_fp16: bool = setting(
        False, "keep the UNet's weights in float16, and float32 ones in the optimizer; --precision fp16 unless set"
    )
    init_loss_scale: float = setting(65536.0, "float16: what the loss is multiplied by at first", at_least=1)
    loss_scale_window: int = setting(
        2000, "float16: steps without overflow after which the loss scale doubles", unit="steps", at_least=1
    )
    is_parallel: bool = setting(False, "data parallel over several devices")
    multi_graph: bool = setting(
        False,
        "training from pictures: autoencoder and text encoders as graphs of their own, compiled apart from the step",
    )
    data_sink: bool = setting(
        False, "Ascend: batches wait in a queue on the device; everywhere: the host logs once in --sink_size steps only"
    )
    sink_size: int = setting(
        1000,
        "with --data_sink: steps after which the host waits for the device and logs them",
        unit="steps",
        at_least=1,
    )


@dataclass
class SampleConfig:
    prompt: str = setting("", "what to draw; or the path of a text file with one prompt a line")
    negative_prompt: str = setting("", "what to steer away from")
    sampler: str = setting(
        "euler",
        "euler, euler_ancestral, heun, ddim, ddpm, dpmpp_2m, dpmpp_2s_ancestral, unipc, lms or lcm; or MindONE's class "
        "of one, such as EulerEDMSampler",
    )
    timestep_spacing: str = setting(
        "leading", "how the steps are spread over the schedule", choices=("leading", "trailing", "linspace")
    )
    karras_sigmas: bool = setting(False, "space the noise levels by Karras et al. 2022 (arXiv 2206.00364), eq. 5")
    sample_step: int = setting(40, "steps of the sampler", unit="steps", at_least=1)
    guidance_scale: float = setting(5.0, "classifier-free guidance; 1 is off", at_least=0)
    guidance_rescale: float = setting(
        0.0, "guidance rescale (arXiv 2305.08891, 3.4)", unit="0 to 1", at_least=0, at_most=1
    )
    unconditional: str = setting(
        "auto",
        "what guidance steers away from without a negative prompt: zero text states (as SDXL base was trained), the "
        "empty prompt (SD 1.x, SD 2.x, SDXL refiner), or the empty prompt with zero size numbers (as --caption_dropout "
        "trains); auto follows the model",
        choices=("auto", "zeros", "empty", "dropout"),
    )
    seed: int = setting(42, "of a prompt's first picture; its i-th has seed + i", at_least=0)
    batch_size: int = setting(1, "pictures drawn at once; the seed, not the batch, makes a picture", at_least=1)
    num_images: int = setting(1, "pictures of each prompt", unit="pictures", at_least=1)
    height: int = setting(1024, "height of the pictures", unit="pixels", at_least=32, multiple_of=32)
    width: int = setting(1024, "width of the pictures", unit="pixels", at_least=32, multiple_of=32)
    orig_height: int | None = setting(
        None, "size the model is told the original had; default: --height", unit="pixels", at_least=1
    )
    orig_width: int | None = setting(None, "default: --width", unit="pixels", at_least=1)
    target_height: int | None = setting(
        None, "size the model is told to aim at; default: --height", unit="pixels", at_least=1
    )
    target_width: int | None = setting(None, "default: --width", unit="pixels", at_least=1)
    crop_coords_top: int = setting(0, "rows the model is told were cut off at the top", unit="pixels", at_least=0)
    crop_coords_left: int = setting(0, "columns the model is told were cut off at the left", unit="pixels", at_least=0)
    aesthetic_score: float = setting(6.0, "SDXL refiner: the score it is told the picture has", at_least=0)
    negative_aesthetic_score: float = setting(2.5, "the same of what to steer away from", at_least=0)
    vae_tiling: str = setting(
        "auto",
        "let the autoencoder see a picture in overlapping tiles, which takes less memory; auto: above 2 megapixels",
        choices=("auto", "on", "off"),
    )
    vae_tile_size: int = setting(1024, "side of a tile", unit="pixels", at_least=32, multiple_of=32)
    img: str = setting("", "task img2img: the picture to start from")
    strength: float = setting(
        0.75, "task img2img: share of the steps that is taken; 1 redraws the picture", above=0, at_most=1
    )
    init_latent_path: str = setting("", "initial unit noise (N, 4, height/8, width/8) as .npy, in place of the seeds'")
    save_latent: str = setting(
        "", "file for the final latents (N, 4, height/8, width/8), before the autoencoder, as .npy"
    )
    save_path: str = setting("outputs/demo/", "folder of the pictures")


@dataclass
class Config:
    task: str = setting(
        "train",
        "train; cache: encode the data once; check: read the data and report. The sampling demo: txt2img or img2img",
        choices=("train", "cache", "check", "img2img"),
    )
    dry_run: bool = setting(False, "training: build everything and report it, but take no step")
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)

    def to_yaml(self) -> str:
        """This configuration as YAML that ``load(["--config", file])`` reads back to an equal one."""
        from omegaconf import OmegaConf

        plain = asdict(self, dict_factory=lambda items: {k: escape(v) if isinstance(v, str) else v for k, v in items})
        return OmegaConf.to_yaml(OmegaConf.create(plain))


def escape(text: str) -> str:
    """Keep OmegaConf from taking ``${...}`` in a plain text for a reference to another value."""
    return text.replace("${", "\\${")


@dataclass(frozen=True)
class Setting:
    """One leaf of the schema: its dotted ``path``, ``flag`` without dashes, type, default and metadata."""

    path: str
    flag: str
    type: type
    optional: bool
    default: Any
    properties: dict[str, Any]

    @property
    def section(self) -> str:
        return self.path.rpartition(".")[0]

    @property
    def expected(self) -> str:
        """The kind of value, as an error message calls it."""
        choices = self.properties.get("choices")
        if choices:
            return "one of " + ", ".join(map(str, choices))
        kind = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[self.type]
        words = {
            "at_least": "of at least",
            "above": "above",
            "at_most": "of at most",
            "below": "below",
            "multiple_of": "that is a multiple of",
        }
        bounds = [f"{word} {self.properties[key]}" for key, word in words.items() if key in self.properties]
        return " ".join([kind, " and ".join(bounds)]).rstrip() + (" or none" if self.optional else "")


def _settings() -> dict[str, Setting]:
    found = {}
    for part in fields(Config):
        owner = part.default_factory if isinstance(part.default_factory, type) else None
        for leaf in fields(owner) if owner else [part]:
            path = f"{part.name}.{leaf.name}" if owner else part.name
            types = [kind for kind in getattr(leaf.type, "__args__", (leaf.type,)) if kind is not type(None)]
            flag = leaf.metadata.get("flag", leaf.name)
            found[path] = Setting(path, flag, types[0], leaf.type is not types[0], leaf.default, dict(leaf.metadata))
    return found


SETTINGS: dict[str, Setting] = _settings()

TRAIN_SECTIONS = ("", "model", "data", "cache", "diffusion", "optim", "train", "validation", "launch")
SAMPLE_SECTIONS = ("", "model", "diffusion", "sample", "launch")
# Whose leaves are flags at a door: two sections share some names (seed, save_path). Dotted keys reach all of them.
DOOR_SECTIONS = {"train": TRAIN_SECTIONS, "sample": SAMPLE_SECTIONS}

# How section sample is set at the door of training, as SimpleTuner and diffusers call these flags.
VALIDATION_FLAGS: dict[str, str] = {
    "validation_prompt": "sample.prompt",
    "validation_negative_prompt": "sample.negative_prompt",
    "validation_sampler": "sample.sampler",
    "validation_steps": "sample.sample_step",
    "validation_guidance": "sample.guidance_scale",
    "validation_seed": "sample.seed",
    "num_validation_images": "sample.num_images",
}

# Settings that parse but of which this release runs these values only; others are refused. Delete a row to open it.
NOT_IN_THIS_RELEASE: dict[str, tuple[Any, ...]] = {
    "launch.is_parallel": (False,),
}
