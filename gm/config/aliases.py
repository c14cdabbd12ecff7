"""What MindONE, diffusers and the trainers around them call a setting or one of its values."""

from gm.config.schema import VALIDATION_FLAGS

# Other names of a setting. With a dot: a key, else a flag.
ALIASES: dict[str, str] = {
    "model.version": "model.tokenizer",  # MindONE's key of the text encoder's tokenizer
    "data.total_step": "train.max_train_steps",  # MindONE
    "optim.base_learning_rate": "optim.learning_rate",  # MindONE
    "total_step": "train.max_train_steps",
    "lr": "optim.learning_rate",
    "train_batch_size": "data.per_batch_size",  # this and the following: diffusers
    "train_data_dir": "data.path",
    "instance_data_dir": "data.path",
    "class_data_dir": "data.class_data_path",
    "pretrained_model_name_or_path": "model.weight",
    "output_dir": "train.save_path",
    "adam_beta1": "optim.beta1",
    "adam_beta2": "optim.beta2",
    "adam_epsilon": "optim.epsilon",
    "adam_weight_decay": "optim.weight_decay",
    "dataloader_num_workers": "data.num_parallel_workers",
    "checkpointing_steps": "train.save_ckpt_interval",
    "checkpoints_total_limit": "train.max_num_ckpt",
    "resume_from_checkpoint": "train.resume",
    "gradient_checkpointing": "train.recompute",
    "mixed_precision": "launch.precision",
    "num_inference_steps": "sample.sample_step",
    "caption_dropout_probability": "data.caption_dropout",  # SimpleTuner
    "caption_dropout_rate": "data.caption_dropout",  # this and the following: kohya's scripts
    "min_snr_gamma": "diffusion.snr_gamma",
    "use_recompute": "train.recompute",  # MindONE
    "zero_terminal_snr": "diffusion.rescale_betas_zero_snr",
    "ip_noise_gamma": "diffusion.input_perturbation",
    **VALIDATION_FLAGS,
}

# Other words for a value of a setting.
VALUE_ALIASES: dict[tuple[str, str], str] = {
    ("task", "txt2img"): "train",  # MindONE
    ("launch.precision", "no"): "fp32",  # diffusers
    ("optim.lr_scheduler", "constant_with_warmup"): "constant",  # diffusers; constant has the warm-up it is given
    ("diffusion.beta_schedule", "squaredcos_cap_v2"): "cosine",  # diffusers
    **{("train.recompute", word): "all" for word in ("True", "true")},  # this and the next: diffusers, MindONE
    **{("train.recompute", word): "none" for word in ("False", "false")},
}
