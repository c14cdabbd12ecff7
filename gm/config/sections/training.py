"""Settings of the objective, the optimizer, a training run and what is looked at during it."""

from dataclasses import dataclass

from gm.config.sections.setting import setting


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
    ema: bool = setting(
        True,
        "with --use_ema: evaluate and draw with the average of the weights, not with the weights of that step; where "
        "--zero_stage shares it out between devices it is always the latter",
        flag="validation_ema",
    )
    using_datasets: bool = setting(
        False,
        "draw pictures of the training set anew from their captions, partly noised, at --infer_interval: shows what a "
        "second-stage expert does to detail; --num_eval_images of them",
        flag="validation_using_datasets",
    )
    strength: float | None = setting(
        None,
        "how far --validation_using_datasets noises them; default: --refiner_training_strength, which is all that a "
        "second stage is trained on",
        unit="0 to 1",
        above=0,
        at_most=1,
        flag="validation_strength",
    )
    other_stage_weight: str = setting(
        "",
        "the other of two experts, a whole model or its UNet: --infer_during_train then draws with both of them too",
        flag="validation_other_stage_weight",
    )
    clip_weight: str = setting(
        "",
        "a CLIP with both towers (a folder of the hub, such as openai/clip-vit-large-patch14's): scores what "
        "--infer_during_train draws; empty: none",
        flag="validation_clip_weight",
    )

    @property
    def draws(self) -> bool:
        """Whether anything is drawn during training."""
        return self.infer_during_train or self.using_datasets
