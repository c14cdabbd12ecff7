import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gm.config.sections.training import DiffusionConfig
from gm.data.noising import Noising, describe
from gm.data.randomness import generator
from gm.diffusion.timesteps import stratify

BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
ABAR = np.cumprod(1 - BETAS)
SIGMAS = np.sqrt(1 / ABAR - 1)
UNIFORM = st.floats(0, 1, exclude_max=True)
SHAPE = (4, 8, 8)
EVERYTHING = {"prediction_type": "v_prediction", "sigma_sampling": "edm"}


def numbers(uniforms, **settings):
    return Noising(DiffusionConfig(**settings)).numbers(np.asarray(uniforms, float), np.ones(len(uniforms)))


def uniforms_of(timesteps):
    return (np.asarray(timesteps) + 0.5) / 1000


def noise(step=0, sample="a", seed=1, shape=SHAPE, **settings):
    return Noising(DiffusionConfig(**settings)).noise(lambda purpose: generator(seed, 0, sample, purpose), shape, step)


def test_everything_is_float32_whatever_is_asked_for():
    for settings in ({}, EVERYTHING, {"loss_type": "smooth_l1", "loss_weighting": "debiased"}):
        found = numbers([0.1, 0.9], **settings)
        assert {(value.dtype, value.shape) for value in found.values()} == {(np.dtype(np.float32), (2,))}


@pytest.mark.parametrize("timesteps", [[999], [0, 100, 146, 147, 350, 999]])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("weighting", ["min_snr", "soft_min_snr", "debiased", None])
def test_weights_are_those_of_the_timesteps(timesteps, prediction_type, weighting):
    gamma = 5.0 if weighting and "min" in weighting else None
    found = numbers(uniforms_of(timesteps), prediction_type=prediction_type, loss_weighting=weighting, snr_gamma=gamma)
    np.testing.assert_array_equal(found["timesteps"], timesteps)
    snr = (ABAR / (1 - ABAR))[timesteps]
    of_latents = {
        "min_snr": np.minimum(snr, 5),
        "soft_min_snr": 5 * snr / (snr + 5),
        "debiased": np.sqrt(snr),
        None: {"epsilon": snr, "v_prediction": snr + 1, "sample": np.ones_like(snr)}[prediction_type],
    }[weighting]
    error = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[prediction_type]
    np.testing.assert_allclose(found["weight"], of_latents / error, rtol=1e-5)


def test_a_gamma_alone_is_min_snr():
    np.testing.assert_array_equal(
        numbers([0.1, 0.5], snr_gamma=5.0)["weight"],
        numbers([0.1, 0.5], snr_gamma=5.0, loss_weighting="min_snr")["weight"],
    )


@pytest.mark.parametrize("timesteps", [[999], [998, 999]])
def test_the_last_timestep_of_a_rescaled_schedule_is_pure_noise(timesteps):
    settings = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "snr_gamma": 5.0}
    found = numbers(uniforms_of(timesteps), **settings)
    assert (found["alpha"][-1], found["sigma"][-1], found["target_latents"][-1]) == (0, 1, -1)
    assert found["weight"][-1] == 0
    if len(timesteps) == 2:
        np.testing.assert_allclose(found["alpha"][0] ** 2, 1.96789e-7, rtol=1e-5)
    floored = numbers(uniforms_of(timesteps), **settings, loss_weight_floor=0.05)
    assert floored["weight"][-1] == np.float32(0.05)


def test_epsilon_of_pure_noise_is_refused_even_where_a_stage_never_draws_it():
    with pytest.raises(ValueError, match="v_prediction"):
        Noising(DiffusionConfig(rescale_betas_zero_snr=True, refiner_training=True))


@given(UNIFORM, st.booleans(), st.sampled_from(["none", "earlier", "later", "range"]), st.sampled_from([0.1, 1, 7.5]))
def test_one_sample_alone_never_leaves_the_range_of_its_stage(uniform, invert, strategy, multiplier):
    settings = {
        "refiner_training": True,
        "refiner_training_strength": 0.35,
        "refiner_training_invert_schedule": invert,
        "timestep_bias_strategy": strategy,
        "timestep_bias_multiplier": multiplier,
        "timestep_bias_begin": 200,
        "timestep_bias_end": 500,
    }
    low, high = (350, 999) if invert else (0, 349)
    (timestep,) = numbers([uniform], **settings)["timesteps"]
    assert low <= timestep <= high
    assert timestep == int(timestep)


@given(UNIFORM, st.booleans(), st.floats(-2, 1), st.floats(0.5, 2))
def test_a_sigma_never_leaves_the_range_of_its_stage(uniform, invert, mean, std):
    settings = {"refiner_training": True, "refiner_training_strength": 0.35, "sigma_sampling": "edm"}
    settings |= {"refiner_training_invert_schedule": invert, "edm_p_mean": mean, "edm_p_std": std}
    low, high = (350, 999) if invert else (0, 349)
    (timestep,) = numbers([uniform], **settings)["timesteps"]
    assert low <= timestep <= high


@pytest.mark.parametrize("batch", [1, 7])
def test_a_stage_draws_all_of_its_timesteps_and_as_often_as_the_bias_says(batch):
    settings = {
        "refiner_training": True,
        "refiner_training_strength": 0.35,
        "timestep_bias_strategy": "range",
        "timestep_bias_multiplier": 2.0,
        "timestep_bias_begin": 200,
        "timestep_bias_end": 500,
    }
    noising = Noising(DiffusionConfig(**settings))
    every = (np.arange(5000) + 0.5) / 5000
    drawn = [
        noising.numbers(part, np.ones(len(part)))["timesteps"] for part in np.split(every, range(batch, 5000, batch))
    ]
    timesteps = np.concatenate(drawn)
    assert set(timesteps) == set(range(350))
    np.testing.assert_allclose((timesteps >= 200).mean(), 300 / 500, atol=1e-3)


@given(st.lists(UNIFORM, min_size=1, max_size=6), st.sampled_from(["epsilon", "v_prediction", "sample"]))
def test_edm_gives_the_network_the_timestep_of_its_noise_level(uniforms, prediction_type):
    found = numbers(uniforms, sigma_sampling="edm", prediction_type=prediction_type)
    sigma = found["sigma"].astype(float) / found["alpha"]
    of_timestep = np.exp(np.interp(found["timesteps"], np.arange(1000), np.log(SIGMAS)))
    np.testing.assert_allclose(sigma, of_timestep, rtol=2e-4)
    np.testing.assert_allclose(found["alpha"] ** 2 + found["sigma"] ** 2, 1, rtol=1e-6)


def test_edm_draws_between_the_timesteps_and_the_median_of_the_paper():
    found = numbers((np.arange(2000) + 0.5) / 2000, sigma_sampling="edm")
    assert len(set(found["timesteps"])) > 1900
    sigma = np.sort(found["sigma"] / found["alpha"])
    # 2.6 % of the distribution lies below what SDXL's schedule can tell apart, and is left out
    np.testing.assert_allclose(sigma[1000], np.exp(-1.2 + 1.2 * 0.0317), rtol=0.01)
    assert sigma[0] >= SIGMAS[0] * (1 - 1e-6)
    assert sigma[-1] <= SIGMAS[-1] * (1 + 1e-6)


@pytest.mark.parametrize("timesteps", [[350], [0, 350, 999]])
@pytest.mark.parametrize("schedule", ["constant", "exponential", "snr"])
def test_robust_losses_have_their_threshold_of_each_sample(timesteps, schedule):
    settings = {"huber_c": 0.2, "huber_schedule": schedule, "snr_gamma": 5.0}
    huber, smooth, plain = (
        numbers(uniforms_of(timesteps), loss_type=kind, **settings) for kind in ("huber", "smooth_l1", "l2")
    )
    c = {
        "constant": np.full(len(timesteps), 0.2),
        "exponential": 0.2 ** (np.array(timesteps) / 1000),
        "snr": 0.8 / (1 + SIGMAS[timesteps]) ** 2 + 0.2,
    }[schedule]
    np.testing.assert_allclose(huber["inverse_huber_c"], 1 / c, rtol=1e-5)
    np.testing.assert_array_equal(smooth["inverse_huber_c"], huber["inverse_huber_c"])
    np.testing.assert_array_equal(huber["weight"], plain["weight"])
    np.testing.assert_allclose(smooth["weight"], plain["weight"] / c, rtol=1e-5)
    assert not plain["inverse_huber_c"].any()


def test_noise_is_the_inputs_unless_it_is_perturbed():
    target, of_input = noise()
    assert of_input is target


@pytest.mark.parametrize(("step", "strength"), [(0, 0.1), (5, 0.05), (9, 0.01), (10, 0.0), (1000, 0.0)])
def test_perturbation_of_the_input_fades_and_leaves_the_target_clean(step, strength):
    shape = (4, 64, 64)
    clean, _ = noise(shape=shape)
    target, of_input = noise(step, shape=shape, input_perturbation=0.1, input_perturbation_steps=10)
    np.testing.assert_array_equal(target, clean)
    np.testing.assert_allclose((of_input - target).std(), strength, rtol=0.02, atol=1e-7)
    assert abs(((of_input - target) * target).mean()) < 0.02 * strength + 1e-7  # not a multiple of the noise


def test_perturbation_without_steps_does_not_fade():
    for step in (0, 10**6):
        target, of_input = noise(step, shape=(4, 64, 64), input_perturbation=0.1)
        np.testing.assert_allclose((of_input - target).std(), 0.1, rtol=0.02)


def test_offset_is_a_constant_of_each_channel_of_input_and_target():
    clean, _ = noise()
    target, of_input = noise(noise_offset=0.1)
    shift = target - clean
    np.testing.assert_allclose(shift, np.broadcast_to(shift[:, :1, :1], SHAPE), atol=1e-6)
    assert len(set(shift[:, 0, 0])) == 4
    assert of_input is target


def test_probability_of_the_offset_chooses_whole_samples():
    offset = []
    for sample in map(str, range(400)):
        clean, _ = noise(sample=sample)
        full, _ = noise(sample=sample, noise_offset=0.1)
        some, _ = noise(sample=sample, noise_offset=0.1, noise_offset_probability=0.25)
        offset.append(not np.array_equal(some, clean))
        np.testing.assert_array_equal(some, full if offset[-1] else clean)
    assert 0.18 < np.mean(offset) < 0.32


@given(st.integers(2, 16), st.integers(0, 2**32 - 1), st.booleans())
def test_a_stratified_batch_has_one_sample_in_every_part_of_the_stage(total, seed, invert):
    rng = np.random.default_rng(seed)
    moved = stratify(rng.random(total), rng.permutation(total), total)
    settings = {"refiner_training": True, "refiner_training_strength": 0.35}
    found = np.sort(numbers(moved, **settings, refiner_training_invert_schedule=invert)["timesteps"])
    begin, length = (350, 650) if invert else (0, 350)
    assume(length >= total)
    edges = begin + np.arange(total + 1) * length / total
    assert (found >= np.floor(edges[:-1])).all()
    assert (found <= np.ceil(edges[1:])).all()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "epsilon at timesteps 0 to 999 of 1000"),
        (
            {"refiner_training": True, "refiner_training_strength": 0.35, "loss_type": "huber"},
            "epsilon at timesteps 0 to 349 of 1000, huber loss",
        ),
        (
            {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "snr_gamma": 5.0},
            "v_prediction at timesteps 0 to 999 of 1000, min_snr weighting, zero terminal SNR, whose last timestep "
            "weighs nothing (--loss_weight_floor 0.1 would let it count)",
        ),
        (
            {"timestep_bias_strategy": "later", "timestep_bias_multiplier": 2.0},
            "epsilon at timesteps 0 to 999 of 1000, later ones 2 times as often",
        ),
        (
            {"sigma_sampling": "edm"},
            "epsilon at timesteps 0 to 999 of 1000, ln sigma of mean -1.2 and deviation 1.2",
        ),
    ],
)
def test_the_objective_is_told_in_a_line(settings, told):
    assert describe(DiffusionConfig(**settings)) == told
