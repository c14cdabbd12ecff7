import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gm.config import load
from gm.data import cache
from gm.errors import SuiteError

DATA = ["--data_path", "pictures"]


class Made:
    """Which pictures and captions an encoder was asked for, each counted once however a batch was filled up."""

    def __init__(self, encoders):
        self.pictures, self.texts = set(), set()
        encode_pictures, encode_text = encoders.encode_pictures, encoders.encode_text

        def count_pictures(pictures):
            self.pictures |= {picture.tobytes() for picture in pictures}
            return encode_pictures(pictures)

        def count_text(ids_1, ids_2):
            self.texts |= {row.tobytes() for row in ids_1}
            return encode_text(ids_1, ids_2)

        encoders.encode_pictures, encoders.encode_text = count_pictures, count_text


@pytest.fixture
def build(config, make_encoders, tokenizers):
    """Fill the cache; gives (pictures encoded, captions encoded)."""

    def run(encoders=None, words=tokenizers):
        encoders = encoders or make_encoders()
        made = Made(encoders)
        cache.build(config, encoders, words, progress=False)
        return len(made.pictures), len(made.texts)

    return run


def test_touch_nothing_and_nothing_is_made(build, caplog):
    caplog.set_level(logging.INFO)
    assert build() == (10, 11)  # 9 different captions, one more of a picture with two, the empty one
    assert build() == (0, 0)
    assert "nothing to do" in caplog.text


def test_the_second_of_two_experts_encodes_nothing(config, build):
    recipes = [load(["--config", f"configs/training/ssd_1b_stage_{stage}.yaml", *DATA]) for stage in ("one", "two")]
    made = []
    for recipe in recipes:
        config.diffusion, config.optim, config.train = recipe.diffusion, recipe.optim, recipe.train
        made.append(build())
    assert recipes[0].diffusion != recipes[1].diffusion
    assert made == [(10, 11), (0, 0)]


def test_what_comes_back_is_what_the_encoders_gave(config, build, encoders, tokenizers):
    build()
    opened = cache.open(config, None, encoders, tokenizers)
    sample = opened.samples[4]
    with Image.open(sample.picture.path) as picture:
        pixels = np.asarray(picture.resize((32, 32), Image.Resampling.LANCZOS), np.float32) / 127.5 - 1
    assert np.allclose(
        opened.moments(sample, 0), encoders.encode_pictures(pixels.transpose(2, 0, 1)[None])[0], atol=1e-6
    )
    for caption in ("caption 4", "another caption 3", ""):
        context, pooled = encoders.encode_text(*tokenizers.encode([caption]))
        assert np.array_equal(opened.text(caption)[0], context[0])
        assert np.array_equal(opened.text(caption)[1], pooled[0])


def test_float16_keeps_three_digits(config, build, encoders, tokenizers):
    build()
    exact = cache.open(config, None, encoders, tokenizers)
    config.cache.dtype = "fp16"
    build()
    half = cache.open(config, None, encoders, tokenizers)
    for sample in exact.samples:
        assert half.moments(sample, 0).dtype == np.float32
        assert np.allclose(half.moments(sample, 0), exact.moments(sample, 0), rtol=1e-3, atol=1e-6)


class TestExactlyTheAffectedEntries:
    @pytest.fixture(autouse=True)
    def built(self, build):
        build()

    def test_a_caption(self, build, pictures):
        (pictures / "5.txt").write_text("something new")
        assert build() == (0, 1)

    def test_a_caption_another_picture_has_already(self, build, pictures):
        (pictures / "5.txt").write_text("caption 6")
        assert build() == (0, 0)

    def test_pixels(self, build, pictures, draw_picture):
        draw_picture(pictures / "5.png", seed=99)
        assert build() == (1, 0)

    def test_a_copied_picture(self, build, pictures):
        shutil.copy(pictures / "5.png", pictures / "copy.png")
        (pictures / "copy.txt").write_text("caption 5")
        assert build() == (0, 0)

    def test_a_picture_moved_to_another_name(self, build, pictures):
        for suffix in (".png", ".txt"):
            (pictures / f"5{suffix}").rename(pictures / f"renamed{suffix}")
        assert build() == (0, 0)

    def test_a_new_picture(self, build, pictures, draw_picture):
        draw_picture(pictures / "new.png", seed=99)
        (pictures / "new.txt").write_text("caption 5")
        assert build() == (1, 0)

    def test_the_resolution(self, build, config):
        config.data.resolution = 40
        assert build() == (10, 0)

    def test_the_crop(self, build, config, pictures, draw_picture):
        draw_picture(pictures / "5.png", seed=5, size=(64, 200))
        assert build() == (1, 0)
        config.data.crop = "random"
        assert build() == (1, 0)  # the other ones are square: nothing of them is cropped

    def test_flips(self, build, config):
        config.data.random_flip = True
        config.cache.variants = 12
        assert build() == (10, 0)  # the unflipped ones are there
        assert build() == (0, 0)

    def test_the_autoencoder(self, build, make_encoders):
        assert build(make_encoders(picture_hash="another vae")) == (10, 0)

    def test_the_text_encoders(self, build, make_encoders):
        assert build(make_encoders(text_hash="another clip")) == (0, 11)

    def test_the_tokenizer(self, build, tokenizers):
        tokenizers.hash = "other words"
        assert build(words=tokenizers) == (0, 11)

    def test_the_precision(self, build, config):
        config.cache.dtype = "fp16"
        assert build() == (10, 11)

    def test_the_seed_where_nothing_is_random(self, build, config):
        config.train.seed = 1
        assert build() == (0, 0)

    def test_the_batch_size(self, build, config):
        config.data.per_batch_size = 7
        config.data.num_parallel_workers = 1
        assert build() == (0, 0)


def test_variants_are_as_many_framings(config, build, encoders, tokenizers, pictures, draw_picture):
    draw_picture(pictures / "5.png", seed=5, size=(64, 400))
    config.data.crop, config.cache.variants = "random", 3
    build()
    opened = cache.open(config, None, encoders, tokenizers)
    sample = next(sample for sample in opened.samples if sample.id == "5.png")
    lefts = [opened.framing(sample, epoch).left for epoch in range(6)]
    assert lefts[:3] == lefts[3:]
    assert len(set(lefts)) == 3
    assert np.array_equal(opened.moments(sample, 1), opened.moments(sample, 4))
    assert not np.array_equal(opened.moments(sample, 0), opened.moments(sample, 1))


def test_training_refuses_a_cache_that_lacks_a_caption_and_names_it(config, build, pictures, encoders, tokenizers):
    build()
    (pictures / "5.txt").write_text("new words")
    with pytest.raises(SuiteError, match=r"lacks 1 of 11 states of captions \('new words'\).*--task cache"):
        cache.open(config, None, encoders, tokenizers)


def test_training_refuses_a_cache_that_lacks_a_picture_and_names_it(
    config, build, pictures, encoders, tokenizers, draw_picture
):
    build()
    draw_picture(pictures / "5.png", seed=77)
    with pytest.raises(SuiteError, match=r"lacks 1 of 10 latents of pictures \(5.png\).*--task cache"):
        cache.open(config, None, encoders, tokenizers)


def test_training_refuses_a_cache_that_is_not_there(config, encoders, tokenizers):
    with pytest.raises(SuiteError, match=r"lacks 10 of 10 latents of pictures \(0.png, 1.png, 2.png and 7 more\)"):
        cache.open(config, None, encoders, tokenizers)


def test_a_damaged_shard_is_told_and_only_it_is_made_again(config, build, encoders, tokenizers, files):
    build()
    before = files(config.cache.path)
    shard = next(Path(config.cache.path, "latents").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(SuiteError, match=f"{shard.name} is damaged"):
        cache.open(config, None, encoders, tokenizers)
    assert build() == (10, 0)
    assert files(config.cache.path) == before


@pytest.mark.parametrize(("value", "remedy"), [(np.nan, "check the weights"), (1e6, "--cache_dtype fp32")])
def test_values_that_are_no_numbers_never_get_in(config, encoders, tokenizers, value, remedy):
    config.cache.dtype = "fp16"
    encode = encoders.encode_pictures
    encoders.encode_pictures = lambda pictures: (
        np.where(np.arange(len(pictures)) == 2, value, 1)[:, None, None, None] * encode(pictures)
    )
    with pytest.raises(SuiteError, match=rf"picture \d\.png .*{remedy}"):
        cache.build(config, encoders, tokenizers, progress=False)
    assert not list(Path(config.cache.path).glob("latents/*"))


@pytest.fixture
def truncate(pictures):
    """Write a picture whose header is good and whose pixels are not."""

    def write(name):
        Image.effect_noise((64, 64), 50).save(pictures / f"{name}.png")
        (pictures / f"{name}.png").write_bytes((pictures / f"{name}.png").read_bytes()[:-900])
        (pictures / f"{name}.txt").write_text("caption 1")

    return write


def test_pictures_that_break_while_decoding_stop_the_cache(build, truncate):
    truncate("bad")
    with pytest.raises(SuiteError, match=r"broken pictures: bad.png \(broken picture: .*--on_bad_sample skip"):
        build()


def test_pictures_that_break_while_decoding_are_left_out_when_asked_for(
    config, build, encoders, tokenizers, truncate, pictures, caplog
):
    truncate("bad")
    (pictures / "worse.png").write_bytes(b"none")
    config.data.on_bad_sample = "skip"
    assert build() == (10, 11)
    report = Path(config.cache.path, "bad_samples.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in report] == ["sample", "bad.png", "worse.png"]
    assert "2 of 12 samples" in caplog.text
    assert build() == (0, 0)
    assert Path(config.cache.path, "bad_samples.csv").read_text().splitlines() == report
    assert [sample.id for sample in cache.open(config, None, encoders, tokenizers).samples] == [
        f"{index}.png" for index in range(10)
    ]
    (pictures / "worse.png").unlink()
    config.data.on_bad_sample = "error"
    with pytest.raises(SuiteError, match=r"1 of 11 samples .* bad.png .*bad_samples.csv; .*--on_bad_sample skip"):
        build()
    with pytest.raises(SuiteError, match=r"bad.png"):
        cache.open(config, None, encoders, tokenizers)


def test_too_many_pictures_that_break_while_decoding_are_never_left_out(
    config, build, encoders, tokenizers, truncate, monkeypatch
):
    config.data.on_bad_sample = "skip"
    for number in range(3):
        truncate(f"bad{number}")
    assert build() == (10, 11)
    truncate("bad3")
    with pytest.raises(SuiteError, match=r"4 of 14 samples .* too many to skip"):  # three are known
        build()
    with pytest.raises(SuiteError, match=r"4 of 14 samples .* too many to skip"):
        cache.open(config, None, encoders, tokenizers)
    config.data.resolution = 40
    with pytest.raises(SuiteError, match=r"4 of 14 pictures cannot be used, .* too many to skip"):
        build()
