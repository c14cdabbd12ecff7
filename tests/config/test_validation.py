"""Settings of the objective that cannot go together, or would do nothing, are refused at the start with the remedy."""

import pytest

from gm.config import load
from gm.errors import UsageError


def read(arguments: str):
    return load(["--data_path", "pictures", *arguments.split()])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--loss_weighting min_snr", ["--snr_gamma", "5.0"]),
        ("--zero_stage 2 --optimizer adafactor", ["--zero_stage 2", "adamw or lion"]),
        ("--zero_stage 1 --ici_tensor_parallelism 2", ["--zero_stage 1", "axis tensor"]),
        ("--dry_run_devices 8", ["--dry_run_devices", "--dry_run:"]),
        ("--loss_weighting soft_min_snr", ["--snr_gamma", "4.0"]),
        ("--loss_weighting debiased --snr_gamma 5", ["debiased", "--snr_gamma"]),
        ("--loss_weight_floor 0.1", ["--loss_weight_floor", "--loss_weighting"]),
        ("--huber_c 0.2", ["--huber_c 0.2", "--loss_type huber"]),
        ("--huber_schedule constant", ["--huber_schedule", "--loss_type huber"]),
        ("--noise_offset_probability 0.5", ["--noise_offset_probability 0.5", "--noise_offset"]),
        ("--input_perturbation_steps 9", ["--input_perturbation_steps 9", "without --input_perturbation"]),
        ("--refiner_training_invert_schedule", ["invert_schedule", "without --refiner_training"]),
        ("--refiner_training_strength 0.35", ["strength 0.35", "without --refiner_training"]),
        ("--refiner_training --refiner_training_strength 0.0001", ["strength 0.0001", "1000 timesteps"]),
        ("--refiner_training --refiner_training_strength 0", ["--refiner_training_strength", "above 0"]),
        (
            "--refiner_training --timestep_bias_strategy range --timestep_bias_begin 500 --timestep_bias_multiplier 2",
            ["none of this stage's timesteps 0 to 199", "--timestep_bias_strategy"],
        ),
        (
            "--refiner_training --timestep_bias_strategy earlier --timestep_bias_portion 0.2",
            ["all of this stage's timesteps 0 to 199"],
        ),
        (
            "--refiner_training --refiner_training_invert_schedule --timestep_bias_strategy earlier"
            " --timestep_bias_portion 0.2",
            ["none of this stage's timesteps 200 to 999"],
        ),
        ("--sigma_sampling edm --timestep_bias_strategy later", ["--timestep_bias_strategy later", "--edm_p_mean"]),
        ("--sigma_sampling edm --rescale_betas_zero_snr --prediction_type sample", ["edm", "--rescale_betas_zero_snr"]),
        ("--edm_p_mean 0.1", ["--edm_p_mean 0.1", "--sigma_sampling edm"]),
        ("--param_fp16 True --precision bf16", ["--param_fp16", "--precision bf16"]),
        ("--relative_step", ["--relative_step", "--optimizer adafactor"]),
        ("--validation_using_datasets", ["--validation_using_datasets draws", "--weight"]),
        ("--validation_strength 0.2", ["--validation_strength", "without --validation_using_datasets"]),
        ("--validation_clip_weight c", ["--validation_clip_weight", "--infer_during_train"]),
        ("--validation_other_stage_weight o", ["--validation_other_stage_weight", "--infer_during_train"]),
        (
            "--validation_other_stage_weight o --infer_during_train --validation_prompt x --weight w",
            ["one of two experts", "--refiner_training"],
        ),
    ],
)
def test_contradictions_are_refused(arguments, named):
    with pytest.raises(UsageError) as caught:
        read(arguments)
    told = str(caught.value)
    assert "\n" not in told
    assert all(name in told for name in named), told


@pytest.mark.parametrize(
    "arguments",
    [
        "--zero_stage 3 --optimizer lion --ici_fsdp_parallelism -1 --dry_run --dry_run_devices 16",
        "--refiner_training --timestep_bias_strategy range --timestep_bias_begin 100 --timestep_bias_end 500",
        "--refiner_training --refiner_training_strength 0.35 --sigma_sampling edm --edm_p_mean -0.5",
        "--refiner_training --refiner_training_invert_schedule --timestep_bias_strategy later --stratified_timesteps",
        "--loss_weighting soft_min_snr --snr_gamma 4 --loss_weight_floor 0.1 --loss_type smooth_l1 --huber_c 0.2",
        "--loss_weighting none --prediction_type v_prediction --rescale_betas_zero_snr --input_perturbation 0.1",
    ],
)
def test_what_agrees_is_accepted(arguments):
    read(arguments)


def test_pictures_during_training_need_something_to_draw_and_to_draw_with():
    with pytest.raises(UsageError, match="--validation_prompt"):
        read("--infer_during_train --weight w.ckpt")
    with pytest.raises(UsageError, match="--weight"):
        read("--infer_during_train --validation_prompt prompts.txt")


def test_pictures_during_training_are_of_the_trained_size_unless_told_otherwise():
    config = read("--infer_during_train --validation_prompt cat --weight w --resolution 512 sample.width=256")
    assert (config.sample.height, config.sample.width) == (512, 256)
    assert read("--resolution 512").sample.height == 1024


def test_the_evaluation_tools_take_the_flags_of_drawing_and_of_data():
    config = load(["--weight", "w", "--data_path", "d", "--resolution", "512", "--seed", "3"], door="eval")
    assert (config.data.path, config.sample.seed, config.sample.height) == ("d", 3, 512)
    with pytest.raises(UsageError, match="name a whole model with --weight"):
        load([], door="eval")
    with pytest.raises(UsageError, match="--task cache is no task of the evaluation tools"):
        load(["--weight", "w", "--task", "cache"], door="eval")


def test_the_flags_of_validation_set_how_pictures_are_drawn():
    sample = read(
        "--validation_prompt cat --validation_negative_prompt dog --validation_sampler ddim --validation_steps 7"
        " --validation_guidance 3 --validation_seed 9 --num_validation_images 2"
    ).sample
    assert (sample.prompt, sample.negative_prompt, sample.sampler, sample.sample_step) == ("cat", "dog", "ddim", 7)
    assert (sample.guidance_scale, sample.seed, sample.num_images) == (3, 9, 2)
    with pytest.raises(UsageError, match="unknown flag --validation_prompt"):
        load(["--validation_prompt", "cat"], door="sample")


def test_an_evaluation_has_no_more_timesteps_than_there_are():
    with pytest.raises(UsageError, match="--eval_timesteps 28"):
        read("--num_train_timesteps 20")


@pytest.mark.parametrize(
    ("arguments", "precision"),
    [("--param_fp16 True", "fp16"), ("--param_fp16 True --precision fp32", "fp32"), ("--param_fp16 False", "fp32")],
)
def test_weights_in_float16_are_computed_with_in_float16_unless_told_otherwise(arguments, precision):
    assert read(arguments).launch.precision == precision
