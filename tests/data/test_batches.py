import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gm.config.sections.data import DatasetConfig
from gm.data import cache, datasets
from gm.data.batches import FIELDS, PICTURE_FIELDS, Batches
from gm.errors import SuiteError, UsageError

FRESH = settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def samples(config):
    return datasets.scan(config.data)


@pytest.fixture
def take_step(config, samples, encoders, tokenizers):
    """All samples of an optimizer step, in order, however the step is divided."""

    def take_step(step, per_rank, size, accumulation):
        config.data.per_batch_size = per_rank
        config.optim.gradient_accumulation_steps = accumulation
        parts = []
        for rank in range(size):
            options = {"cursor": (0, step), "rank": rank, "size": size}
            with Batches(config, samples, None, encoders, tokenizers, **options) as batches:
                parts.append(take(batches, accumulation))
        return joined([parts[rank][turn] for turn in range(accumulation) for rank in range(size)])

    return take_step


@pytest.fixture
def opened(config, encoders, tokenizers):
    """Open batches from pictures or, once the cache is built, from it; all are closed at the end."""
    every = []

    def make(cached=False, **options):
        source = cache.open(config, None, encoders, tokenizers) if cached else None
        every.append(Batches(config, datasets.scan(config.data), source, encoders, tokenizers, **options))
        return every[-1]

    yield make
    for batches in every:
        batches.close()


def take(batches, count):
    return [next(batches) for _ in range(count)]


def assert_equal(one, other):
    for left, right in zip(one, other, strict=True):
        for name in FIELDS:
            np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def joined(batches):
    return {name: np.concatenate([batch[name] for batch in batches]) for name in FIELDS}


def test_shapes_types_and_order_are_those_of_the_step(opened):
    batch = next(opened())
    assert {name: value.shape for name, value in batch.items()} == {
        "moments": (4, 8, 4, 4),
        "posterior_noise": (4, 4, 4, 4),
        "noise": (4, 4, 4, 4),
        "input_noise": (4, 4, 4, 4),
        "context": (4, 77, 3),
        "pooled": (4, 3),
        "time_ids": (4, 6),
        **dict.fromkeys(("timesteps", "alpha", "sigma", "target_noise", "target_latents", "weight"), (4,)),
        "inverse_huber_c": (4,),
    }
    assert tuple(batch) == FIELDS
    assert {value.dtype for value in batch.values()} == {np.dtype(np.float32)}


def test_as_pictures_nothing_is_encoded_and_all_else_is_the_same(opened, encoders):
    encoded, plain = take(opened(), 3), take(opened(as_pictures=True), 3)
    calls = encoders.pictures
    assert tuple(plain[0]) == PICTURE_FIELDS
    for one, other in zip(encoded, plain):
        for name in set(FIELDS) & set(PICTURE_FIELDS):
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)
        assert (other["ids"].shape, other["ids"].dtype) == ((4, 2, 77), np.int32)
        np.testing.assert_array_equal(encoders.encode_pictures(other["pictures"]), one["moments"])
        np.testing.assert_array_equal(encoders.encode_text(*other["ids"].transpose(1, 0, 2))[0], one["context"])
    assert calls == 12  # of the three batches that were encoded


def test_coefficients_are_those_of_the_timesteps(opened, config):
    config.diffusion.prediction_type = "v_prediction"
    config.diffusion.snr_gamma = 5.0
    batch = joined(take(opened(), 3))
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    abar = np.cumprod(1 - betas)[batch["timesteps"].astype(int)]
    np.testing.assert_allclose(batch["alpha"] ** 2, abar, rtol=1e-5)
    np.testing.assert_allclose(batch["sigma"] ** 2, 1 - abar, rtol=1e-5)
    np.testing.assert_allclose(batch["target_noise"], batch["alpha"], rtol=1e-6)
    np.testing.assert_allclose(batch["target_latents"], -batch["sigma"], rtol=1e-6)
    snr = abar / (1 - abar)
    real = np.array([1.0] * 10 + [0.0] * 2)  # the third batch has two samples left
    fill = np.array([1.0] * 8 + [2.0] * 4)
    np.testing.assert_allclose(batch["weight"], np.minimum(snr, 5) / (snr + 1) * real * fill, rtol=1e-4)


@pytest.mark.parametrize("crop", ["center", "random"])
def test_from_the_cache_and_from_the_pictures_come_the_same_arrays(
    config, opened, encoders, tokenizers, pictures, draw_picture, crop
):
    draw_picture(pictures / "5.png", seed=5, size=(40, 100))
    config.data.crop, config.data.random_flip, config.cache.variants = crop, crop == "random", 2
    config.data.caption_dropout = 0.3
    cache.build(config, encoders, tokenizers, progress=False)
    assert_equal(take(opened(cached=True), 6), take(opened(), 6))  # both epochs of which the cache has a variant


def test_latents_and_texts_may_be_cached_apart(config, opened, encoders, tokenizers):
    cache.build(config, encoders, tokenizers, progress=False)
    whole = take(opened(cached=True), 3)
    config.cache.text_embedding = False
    assert_equal(take(opened(cached=True), 3), whole)
    config.cache.latent, config.cache.text_embedding = False, True
    assert_equal(take(opened(cached=True), 3), whole)


@FRESH
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2))
def test_ranks_and_accumulation_divide_the_same_step(take_step, batch, ranks, turns, step):
    assert_equal([take_step(step, batch, ranks, turns)], [take_step(step, batch * ranks * turns, 1, 1)])


@FRESH
@given(st.integers(1, 8), st.booleans())
def test_the_number_of_workers_changes_nothing(config, samples, encoders, tokenizers, workers, flip):
    config.data.random_flip = flip
    runs = []
    for number in (1, workers):
        config.data.num_parallel_workers = number
        with Batches(config, samples, None, encoders, tokenizers) as batches:
            runs.append(take(batches, 5))
    assert_equal(*runs)


@FRESH
@given(st.integers(0, 8), st.integers(1, 3))
def test_going_on_from_a_cursor_is_going_on(config, samples, encoders, tokenizers, stopped, turns):
    config.optim.gradient_accumulation_steps = turns
    with Batches(config, samples, None, encoders, tokenizers) as batches:
        take(batches, stopped * turns)
        cursor = batches.cursor
        rest = take(batches, 4)
    with Batches(config, samples, None, encoders, tokenizers, cursor=cursor) as batches:
        assert batches.cursor == cursor
        assert_equal(rest, take(batches, 4))


def test_a_step_is_done_with_its_last_part(config, opened):
    config.data.per_batch_size, config.optim.gradient_accumulation_steps = 2, 2
    batches = opened()
    assert batches.steps_per_epoch == 3
    cursors = [batches.cursor]
    for _ in range(7):
        next(batches)
        cursors.append(batches.cursor)
    assert cursors == [(0, 0), (0, 0), (0, 1), (0, 1), (0, 2), (0, 2), (1, 0), (1, 0)]


def test_every_picture_is_seen_once_an_epoch(config, opened, pictures, draw_picture):
    config.data.resolution = 64
    config.data.buckets = True
    for index in range(4):
        draw_picture(pictures / f"wide{index}.png", seed=50 + index, size=(64, 256))
        (pictures / f"wide{index}.txt").write_text("wide")
    config.data.per_batch_size = 3
    batches = opened()
    assert batches.sizes == [(32, 128), (64, 64)]
    assert batches.steps_per_epoch == 2 + 4
    for _ in range(2):
        epoch = take(batches, batches.steps_per_epoch)
        shown = [moments.tobytes() for batch in epoch for moments in batch["moments"][batch["weight"] > 0]]
        assert len(shown) == len(set(shown)) == 14
        assert all(np.isclose(batch["weight"].mean(), 1) for batch in epoch)


def test_caption_dropout_gives_the_empty_prompt_and_no_sizes(config, opened, encoders, tokenizers):
    context, pooled = encoders.encode_text(*tokenizers.encode([""]))
    config.data.caption_dropout = 0.5
    batch = joined(take(opened(), 30))
    dropped = (batch["context"] == context).all((1, 2))
    assert 0.35 < dropped.mean() < 0.65
    assert (dropped == (batch["pooled"] == pooled).all(1)).all()
    assert (dropped == (batch["time_ids"] == 0).all(1)).all()


def test_samples_draw_anew_in_every_epoch_and_for_every_seed(config, opened):
    config.data.shuffle = False
    first = take(opened(), 6)
    config.train.seed = 1
    other = take(opened(), 1)
    for name in ("noise", "posterior_noise", "timesteps"):
        assert not np.array_equal(first[0][name], first[3][name])
        assert not np.array_equal(first[0][name], other[0][name])
    np.testing.assert_array_equal(first[0]["moments"], first[3]["moments"])
    assert not np.array_equal(first[0]["noise"], first[0]["posterior_noise"])


def test_several_captions_take_turns(config, opened, encoders, tokenizers, pictures):
    for path in pictures.glob("*.txt"):
        path.write_text("one\ntwo\n")
    pooled = joined(take(opened(), 15))["pooled"]
    shares = [(pooled == encoders.encode_text(*tokenizers.encode([text]))[1]).all(1).mean() for text in ("one", "two")]
    assert sum(shares) == 1
    assert min(shares) > 0.3


@FRESH
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 4))
def test_strata_are_those_of_the_whole_step_however_it_is_divided(config, take_step, batch, ranks, turns, step):
    """With what fades by the step as well, from any cursor."""
    config.diffusion.stratified_timesteps = True
    config.diffusion.input_perturbation, config.diffusion.input_perturbation_steps = 0.1, 5

    whole = take_step(step, batch * ranks * turns, 1, 1)
    assert_equal([take_step(step, batch, ranks, turns)], [whole])
    real = np.flatnonzero(whole["weight"])
    assert sorted(np.floor(whole["timesteps"][real] * len(real) / 1000 + 1e-6)) == list(range(len(real)))


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("sigma_sampling", ["discrete", "edm"])
def test_a_stage_holds_at_batch_1(config, opened, invert, sigma_sampling):
    config.data.per_batch_size = 1
    config.diffusion.refiner_training, config.diffusion.refiner_training_strength = True, 0.35
    config.diffusion.refiner_training_invert_schedule, config.diffusion.sigma_sampling = invert, sigma_sampling
    timesteps = joined(take(opened(), 60))["timesteps"]
    low, high = (350, 999) if invert else (0, 349)
    assert (timesteps >= low).all()
    assert (timesteps <= high).all()
    assert len(set(timesteps)) > 40


def test_strata_pass_from_sample_to_sample(config, opened):
    config.diffusion.stratified_timesteps, config.data.shuffle = True, False
    batches = opened()
    first, second = (np.argsort(joined(take(batches, 3))["timesteps"][:4]) for _ in range(2))
    assert not np.array_equal(first, second)


def test_perturbation_fades_with_the_steps_that_update_the_weights(config, opened):
    config.diffusion.input_perturbation, config.diffusion.input_perturbation_steps = 0.1, 4
    config.data.per_batch_size, config.optim.gradient_accumulation_steps = 2, 2
    strengths = [(batch["input_noise"] - batch["noise"]).std() for batch in take(opened(), 12)]
    expected = np.repeat([0.1, 0.075, 0.05, 0.025, 0, 0], 2)  # the second epoch begins with the fourth step
    np.testing.assert_allclose(strengths, expected, rtol=0.25, atol=1e-9)


def test_noise_offset_moves_whole_channels(config, opened):
    plain = joined(take(opened(), 3))["noise"]
    config.diffusion.noise_offset = 0.1
    shift = joined(take(opened(), 3))["noise"] - plain
    np.testing.assert_allclose(shift, shift[:, :, :1, :1].repeat(4, 2).repeat(4, 3), atol=1e-6)
    assert 0.05 < shift[:, :, 0, 0].std() < 0.2


def test_the_learned_noise_is_standard_normal(opened):
    noise = joined(take(opened(), 30))["noise"]
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


def test_a_picture_that_is_removed_meanwhile_is_told(config, opened, pictures):
    batches = opened()
    for path in pictures.glob("*.png"):
        path.unlink()
    with pytest.raises(SuiteError, match=r"picture \d\.png cannot be used: the file is gone"):
        take(batches, 20)


def test_too_few_pictures_for_a_batch_are_told(config, opened):
    config.data.drop_last, config.data.per_batch_size = True, 11
    with pytest.raises(UsageError, match="10 pictures do not fill one batch of 11"):
        opened()


def test_settings_the_mathematics_refuses_are_told_as_usage(config, opened):
    config.diffusion.timestep_bias_multiplier = -1.0
    config.diffusion.timestep_bias_strategy = "earlier"
    with pytest.raises(UsageError):
        opened()


def test_what_is_not_cached_needs_encoders(config, samples):
    with pytest.raises(ValueError, match="needs encoders"):
        Batches(config, samples)


def test_what_cannot_be_used_is_in_a_file_of_the_run(config, encoders, tokenizers, pictures, tmp_path):
    (pictures / "bad.png").write_bytes(b"oops")
    config.cache.latent = config.cache.text_embedding = False
    report = tmp_path / "run/bad_samples.csv"
    with pytest.raises(SuiteError, match=r"1 of 11 samples .* all of them: .*run.bad_samples.csv"):
        Batches.of(config, encoders=encoders, tokenizers=tokenizers, report=report)
    assert report.read_text() == "sample,reason\nbad.png,not a picture Pillow can read\n"


@pytest.fixture
def of_many_sizes(config, draw_picture, tmp_path):
    """Eleven pictures, each of a size of its own, which so tells which picture it is."""
    for index in range(11):
        size = (40 + index, 100 - 7 * index)
        draw_picture(tmp_path / f"sizes/{index}.png", seed=index, size=size).with_suffix(".txt").write_text(f"{index}")
    config.data.path, config.data.buckets, config.data.resolution = str(tmp_path / "sizes"), True, 64
    return datasets.scan(config.data)


@FRESH
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 2), st.sampled_from([32, 64, 128]), st.integers(1, 3))
def test_every_picture_once_an_epoch_and_one_size_for_all_ranks(
    config, of_many_sizes, encoders, tokenizers, batch, ranks, turns, resolution, workers
):
    config.data.per_batch_size, config.optim.gradient_accumulation_steps = batch, turns
    config.data.resolution, config.data.num_parallel_workers = resolution, workers
    counted, shapes = [], {}
    for rank in range(ranks):
        with Batches(config, of_many_sizes, None, encoders, tokenizers, rank=rank, size=ranks) as batches:
            for number, one in enumerate(take(batches, batches.steps_per_epoch * turns)):
                counted += [tuple(told[:2]) for told, weight in zip(one["time_ids"], one["weight"]) if weight]
                shapes.setdefault(number // turns, set()).add(one["noise"].shape)
                sizes = {tuple(told[4:]) for told in one["time_ids"]}
                assert sizes == {(8 * one["noise"].shape[2], 8 * one["noise"].shape[3])}
            assert batches.cursor == (1, 0)
    assert sorted(counted) == sorted(sample.size for sample in of_many_sizes)
    assert all(len(of_step) == 1 for of_step in shapes.values())


def test_repeats_draw_anew_and_the_cache_has_the_same(config, opened, encoders, tokenizers, pictures, draw_picture):
    """A visit is drawn as if it were in an epoch of its own, whose variant the cache keeps."""
    draw_picture(pictures / "5.png", seed=5, size=(40, 100))
    config.data.path, config.data.datasets = "", (DatasetConfig(str(pictures), repeats=2),)
    config.data.crop, config.data.random_flip, config.cache.variants = "random", True, 4
    config.data.per_batch_size = 10
    cache.build(config, encoders, tokenizers, progress=False)
    twice = [joined(take(opened(cached=cached), 4)) for cached in (True, False)]
    for name in FIELDS:
        np.testing.assert_array_equal(twice[0][name], twice[1][name], err_msg=name)
    assert len(np.unique(twice[0]["noise"], axis=0)) == 40
    config.data.datasets = (DatasetConfig(str(pictures)),)
    once = joined(take(opened(), 4))

    def rows(batch):
        return sorted(map(tuple, batch["noise"].reshape(40, -1)))

    np.testing.assert_array_equal(rows(once), rows(twice[0]))  # four epochs of one visit are two of two


def test_loss_weights_are_those_of_the_data_set(config, opened, pictures):
    plain = joined(take(opened(), 3))["weight"]
    config.data.path, config.data.datasets = "", (DatasetConfig(str(pictures), loss_weight=0.25),)
    np.testing.assert_allclose(joined(take(opened(), 3))["weight"], 0.25 * plain)
