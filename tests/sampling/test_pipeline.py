from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from gm.diffusion.samplers import SAMPLERS
from gm.diffusion.schedule import alphas_cumprod, betas, rescale_zero_terminal_snr
from gm.errors import UsageError
from gm.sampling.expert import Expert
from gm.sampling.pipeline import Pipeline, to_pictures
from gm.sampling.settings import Request, Settings, plan_steps

ABAR = alphas_cumprod(betas())
SETTINGS = Settings(sample_step=6, height=64, width=64, guidance_scale=4.0)
REQUESTS = [Request("a red circle", 42), Request("a blue square", 43), Request("a red circle", 7, "green")]


@pytest.fixture
def pipeline(networks, tokenizers):
    return Pipeline(networks, tokenizers, ABAR)


def latents(pipeline, requests, settings=SETTINGS, **options):
    return [drawn.latents for drawn in pipeline.sample(requests, settings, **options)]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_does_not_depend_on_the_batch_it_is_in(pipeline, sampler):
    settings = replace(SETTINGS, sampler=sampler)
    alone = [latents(pipeline, [request], settings)[0] for request in REQUESTS]
    for batch_size in (2, 3, 5):
        np.testing.assert_array_equal(latents(pipeline, REQUESTS, settings, batch_size=batch_size), alone)


def test_a_batch_that_is_not_full_is_filled_up_so_there_is_one_shape(pipeline, networks):
    pictures = list(pipeline.sample(REQUESTS, SETTINGS, batch_size=2))
    assert len(pictures) == 3
    assert sorted(kind for kind, *_ in networks.shapes) == ["decoder", "text", "unet"]


def test_each_text_is_encoded_once(pipeline, tokenizers):
    for _ in range(2):
        list(pipeline.sample(REQUESTS, SETTINGS, batch_size=2))
    assert tokenizers.encoded == [["a red circle", "a blue square"], ["", "green"]]


def test_without_guidance_the_network_runs_once_a_picture(pipeline, networks):
    list(pipeline.sample(REQUESTS[:2], replace(SETTINGS, guidance_scale=1.0), batch_size=2))
    assert ("unet", (2, 4, 8, 8), (2, 77, 6)) in networks.shapes


def test_guidance_puts_the_negative_prompts_before_the_prompts(pipeline, networks):
    list(pipeline.sample(REQUESTS, SETTINGS, batch_size=3))
    context, pooled, time_ids = networks.conditions[0]
    assert context.shape == (6, 77, 6)
    assert (context[:2] == 0).all()
    assert (pooled[:2] == 0).all()
    assert context[2, 0, 0] == pytest.approx(sum(b"green") / 1000)
    assert context[3, 0, 0] == pytest.approx(sum(b"a red circle") / 1000)
    np.testing.assert_array_equal(time_ids, [[64, 64, 0, 0, 64, 64]] * 6)


def test_a_negative_prompt_changes_the_picture(pipeline):
    plain, negative = latents(pipeline, [Request("a red circle", 42), Request("a red circle", 42, "green")])
    assert np.abs(plain - negative).max() > 1e-3


@pytest.mark.parametrize(
    ("unconditional", "state", "size"), [("zeros", 0.0, 64), ("empty", 0.001, 64), ("dropout", 0.001, 0)]
)
def test_what_stands_for_no_prompt_can_be_chosen(networks, tokenizers, unconditional, state, size):
    pipeline = Pipeline(networks, tokenizers, ABAR)
    list(pipeline.sample([Request("x", 1)], replace(SETTINGS, unconditional=unconditional)))
    context, pooled, time_ids = networks.conditions[0]
    assert pooled[0, 0] == pytest.approx(state)
    assert time_ids[0].tolist() == [size, size, 0, 0, size, size]
    assert time_ids[1].tolist() == [64, 64, 0, 0, 64, 64]
    assert context[0].max() == 0  # the fake's empty prompt has states of 0, and a pooled state that is not


def test_the_six_numbers_are_height_before_width():
    settings = replace(
        SETTINGS, height=64, width=128, orig_height=300, orig_width=400, crop_coords_top=5, crop_coords_left=6,
        target_height=70, target_width=80,
    )  # fmt: skip
    assert settings.time_ids() == (300, 400, 5, 6, 70, 80)
    assert replace(SETTINGS, height=64, width=128).time_ids() == (64, 128, 0, 0, 64, 128)


def test_the_refiner_is_told_an_aesthetic_score_in_place_of_the_target(fake_networks, tokenizers, families):
    networks = fake_networks(families["refiner"])
    settings = replace(SETTINGS, crop_coords_top=5, aesthetic_score=7.0, negative_aesthetic_score=1.5)
    list(Pipeline(networks, tokenizers, ABAR).sample([Request("x", 1)], settings))
    assert networks.conditions[0][2].tolist() == [[64, 64, 5, 0, 1.5], [64, 64, 5, 0, 7.0]]


@pytest.mark.parametrize("family", ["refiner", "sd-1", "sd-2"])
def test_models_trained_with_empty_captions_steer_away_from_the_empty_prompt(
    fake_networks, tokenizers, families, family
):
    networks = fake_networks(families[family])
    list(Pipeline(networks, tokenizers, ABAR).sample([Request("x", 1)], replace(SETTINGS, unconditional="auto")))
    _, pooled, time_ids = networks.conditions[0]
    assert pooled[0, 0] == pytest.approx(0.001)  # the fake's empty prompt; zeros would be 0
    assert time_ids.shape == (2, families[family].size_numbers)


def test_given_noise_takes_the_place_of_the_seed(pipeline):
    noise = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    same = [replace(REQUESTS[0], seed=seed) for seed in (1, 2)]
    first, second = latents(pipeline, same, noise=noise, batch_size=2)
    np.testing.assert_array_equal(first, second)
    per_request = np.concatenate([noise, 0.5 * noise])
    third, fourth = latents(pipeline, same, noise=per_request)
    np.testing.assert_array_equal(third, first)
    assert not np.array_equal(fourth, first)


@pytest.mark.parametrize("shape", [(1, 4, 8, 16), (4, 8, 8), (3, 4, 8, 8)])
def test_noise_of_another_shape_is_refused(pipeline, shape):
    with pytest.raises(UsageError, match=r"\(2, 4, 8, 8\)"):
        pipeline.sample(REQUESTS[:2], SETTINGS, noise=np.zeros(shape, np.float32))


@pytest.mark.parametrize(("name", "size", "nearest"), [("height", 61, "64"), ("width", 3, "8"), ("width", 73, "72")])
def test_a_size_that_is_no_multiple_of_8_is_refused(pipeline, name, size, nearest):
    with pytest.raises(UsageError, match=f"--{name} {size}.*multiple of 8.*use {nearest}"):
        pipeline.sample(REQUESTS, replace(SETTINGS, **{name: size}))


def test_img2img_takes_the_last_steps_and_stays_nearer_the_picture_with_less_strength(pipeline, networks):
    picture = Image.new("RGB", (100, 80), (255, 0, 0))
    distances = []
    for strength in (0.2, 0.5, 1.0):
        networks.timesteps.clear()
        settings = replace(SETTINGS, sample_step=10, strength=strength)
        found = latents(pipeline, REQUESTS[:1], settings, picture=picture)[0]
        assert (
            networks.timesteps
            == plan_steps(replace(settings, strength=1.0), ABAR).timesteps[-len(networks.timesteps) :].tolist()
        )
        assert len(networks.timesteps) == int(10 * strength)
        clean = networks.encode(np.full((1, 3, 64, 64), [[[1.0]], [[-1.0]], [[-1.0]]]))[0, :4] * networks.scale_factor
        distances.append(np.abs(found - clean).mean())
    assert distances == sorted(distances)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sampler": "eulr"}, "euler_ancestral"),
        ({"timestep_spacing": "middle"}, "trailing"),
        ({"sample_step": 1001}, "1000"),
        ({"strength": 0.0}, "strength"),
        ({"strength": 0.01}, "strength"),
        ({"sampler": "ddim", "karras_sigmas": True}, "Karras"),
        ({"unconditional": "none"}, "dropout"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_computed(pipeline, networks, change, words):
    with pytest.raises(UsageError, match=words):
        pipeline.sample(REQUESTS, replace(SETTINGS, **change))
    assert not networks.shapes


def test_epsilon_with_zero_terminal_snr_is_refused(networks, tokenizers):
    zero_terminal = alphas_cumprod(rescale_zero_terminal_snr(betas()))
    with pytest.raises(ValueError, match="v_prediction"):
        Pipeline(networks, tokenizers, zero_terminal, "epsilon")


def test_progress_counts_every_step_of_every_batch(pipeline):
    ticks = []
    list(pipeline.sample(REQUESTS, SETTINGS, batch_size=2, on_step=lambda: ticks.append(1)))
    assert len(ticks) == 2 * SETTINGS.sample_step


def test_pixels_are_clipped_and_rounded():
    pixels = np.zeros((1, 3, 8, 8), np.float32)
    pixels[0, 0], pixels[0, 1], pixels[0, 2] = 2.0, -3.0, 0.0
    assert to_pictures(pixels)[0].getpixel((0, 0)) == (255, 0, 128)


@pytest.mark.parametrize(
    ("tiling", "height", "width", "tile"),
    [
        ("auto", 1024, 1024, None),
        ("auto", 1024, 2048, None),
        ("auto", 1056, 2048, 1024),
        ("on", 1024, 1024, None),  # one tile would be the picture
        ("on", 64, 1056, 1024),
        ("off", 4096, 4096, None),
    ],
)
def test_large_pictures_are_tiled_where_wanted(tiling, height, width, tile):
    assert replace(SETTINGS, vae_tiling=tiling, height=height, width=width).tile == tile


def test_the_autoencoder_sees_tiles_of_one_shape(pipeline, networks):
    settings = replace(SETTINGS, height=96, width=128)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8))
    whole = [drawn.picture for drawn in pipeline.sample(REQUESTS, settings, picture=picture)]
    networks.shapes.clear()
    settings = replace(settings, vae_tiling="on", vae_tile_size=64)
    tiled = [drawn.picture for drawn in pipeline.sample(REQUESTS, settings, picture=picture)]
    assert [shape for kind, shape, *_ in networks.shapes if kind == "decoder"] == [(1, 4, 8, 8)]
    for one, other in zip(tiled, whole):  # the fake autoencoder knows no surroundings
        np.testing.assert_allclose(np.asarray(one, int), np.asarray(other, int), atol=1)


def two_stages(networks, tokenizers, fake_networks, architecture=None, **options):
    """A pipeline with a second expert, and the second's networks."""
    second = fake_networks(architecture) if architecture else fake_networks()
    return Pipeline(networks, tokenizers, ABAR, second=Expert(second, tokenizers, ABAR, **options)), second


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_of_two_stages_is_asked_at_its_own_timesteps_in_one_run(networks, tokenizers, fake_networks, sampler):
    settings = replace(SETTINGS, sampler=sampler, sample_step=20, timestep_spacing="trailing", denoising_end=0.65)
    pipeline, second = two_stages(networks, tokenizers, fake_networks)
    both = latents(pipeline, REQUESTS, settings, batch_size=2)
    assert min(networks.timesteps) >= 350 > max(second.timesteps)
    # the fakes are equal, so that a run which is not cut draws the same: noise, history and all
    alone = latents(Pipeline(networks, tokenizers, ABAR), REQUESTS, replace(settings, denoising_end=None), batch_size=2)
    np.testing.assert_array_equal(both, alone)


def test_forty_steps_are_26_and_14(networks, tokenizers, fake_networks):
    pipeline, second = two_stages(networks, tokenizers, fake_networks)
    ticks = []
    settings = replace(SETTINGS, sample_step=40, denoising_end=0.65)
    list(pipeline.sample(REQUESTS[:1], settings, on_step=lambda: ticks.append(1)))
    assert (len(networks.timesteps), len(second.timesteps), len(ticks)) == (26, 14, 40)


def test_the_second_stage_has_its_own_conditions(networks, tokenizers, fake_networks, families):
    pipeline, second = two_stages(networks, tokenizers, fake_networks, families["refiner"])
    list(pipeline.sample(REQUESTS[:1], replace(SETTINGS, sample_step=20, denoising_end=0.65)))
    assert networks.conditions[0][2].shape == (2, 6)
    assert (networks.conditions[0][1][0] == 0).all()  # SDXL base steers away from zero states
    assert second.conditions[0][2].tolist() == [[64, 64, 0, 0, 2.5], [64, 64, 0, 0, 6.0]]
    assert (second.conditions[0][1][0] > 0).all()  # and its refiner from the empty prompt


def test_img2img_goes_through_both_stages(networks, tokenizers, fake_networks):
    pipeline, second = two_stages(networks, tokenizers, fake_networks)
    settings = replace(SETTINGS, sample_step=40, strength=0.6, denoising_end=0.65)
    list(pipeline.sample(REQUESTS[:1], settings, picture=Image.new("RGB", (64, 64), (255, 0, 0))))
    assert (len(networks.timesteps), len(second.timesteps)) == (10, 14)
    with pytest.raises(UsageError, match="none for the first stage"):
        pipeline.check(replace(settings, strength=0.3))


def test_a_second_stage_of_another_schedule_is_asked_at_the_same_noise_level(networks, tokenizers, fake_networks):
    zero_terminal = alphas_cumprod(rescale_zero_terminal_snr(betas()))
    second = fake_networks()
    expert = Expert(second, tokenizers, ABAR)
    pipeline = Pipeline(networks, tokenizers, zero_terminal, "v_prediction", expert)
    settings = replace(SETTINGS, sample_step=20, timestep_spacing="trailing", denoising_end=0.65)
    list(pipeline.sample(REQUESTS[:1], settings))
    own = plan_steps(replace(settings, denoising_end=None), zero_terminal).below(350).timesteps
    assert len(second.timesteps) == len(own)
    for asked, timestep in zip(second.timesteps, own):
        assert asked > timestep  # as the rescaled schedule is noisier there
        np.testing.assert_allclose(np.interp(asked, np.arange(1000), ABAR), zero_terminal[int(timestep)], rtol=2e-3)


def test_stopping_and_going_on_draws_what_one_run_draws(pipeline):
    for sampler in ("euler", "ddim"):
        whole = replace(SETTINGS, sampler=sampler, sample_step=10)
        half = latents(pipeline, REQUESTS, replace(whole, denoising_end=0.65))
        rest = replace(whole, denoising_start=0.65)
        again = latents(pipeline, REQUESTS, rest, noise=np.stack(half))
        np.testing.assert_allclose(again, latents(pipeline, REQUESTS, whole), atol=1e-5)
    with pytest.raises(UsageError, match="--init_latent_path"):
        pipeline.sample(REQUESTS, rest)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"denoising_end": None}, "need --denoising_end"),
        ({"denoising_end": 1.5}, "between 0 and 1"),
        ({"denoising_end": 0.999}, "none for the second stage"),
        ({"denoising_end": 0.001}, "none for the first stage"),
    ],
)
def test_a_hand_over_that_leaves_a_stage_without_steps_is_refused(networks, tokenizers, fake_networks, change, words):
    pipeline, _ = two_stages(networks, tokenizers, fake_networks)
    with pytest.raises(UsageError, match=words):
        pipeline.sample(REQUESTS, replace(SETTINGS, **change))
    assert not networks.shapes


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_guidance_is_off_at_one_and_below_as_in_diffusers(pipeline, networks, scale):
    list(pipeline.sample(REQUESTS[:1], replace(SETTINGS, guidance_scale=scale)))
    assert ("unet", (1, 4, 8, 8), (1, 77, 6)) in networks.shapes
