from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.cbook import get_sample_data
from PIL import Image, ImageOps

from gm.data.buckets import SDXL_SIZES, nearest
from gm.data.transforms import BadPictureError, Framing, apply, decode, frame, load, picture_size

sides = st.integers(1, 10_000)


@given(sides, sides, st.sampled_from(["center", "random"]), st.booleans(), st.integers(0, 2**32))
def test_any_picture_is_covered_and_told_truly(height, width, crop, flip, seed):
    target = nearest((height, width), SDXL_SIZES)
    framing = frame((height, width), target, crop, flip, np.random.default_rng(seed))
    for axis in (0, 1):
        start = (framing.top, framing.left)[axis]
        assert 0 <= start <= framing.resized[axis] - target[axis]
    # One axis fits exactly, the other one keeps the ratio to within the rounding.
    assert any(framing.resized[axis] == target[axis] for axis in (0, 1))
    scale = max(target[0] / height, target[1] / width)
    assert abs(framing.resized[0] - height * scale) <= 0.5 + 1e-6
    assert abs(framing.resized[1] - width * scale) <= 0.5 + 1e-6
    assert framing.time_ids().tolist() == [height, width, framing.top, framing.left, *target]


def test_center_crop_is_central():
    framing = frame((100, 300), (64, 64))
    assert framing == Framing((100, 300), (64, 192), 0, 64, (64, 64))


def test_random_crops_reach_both_ends():
    lefts = {frame((8, 10), (8, 8), "random", rng=np.random.default_rng(seed)).left for seed in range(64)}
    assert lefts == {0, 1, 2}


def test_flipping_does_not_change_where_is_cropped():
    both = [frame((80, 99), (64, 64), "random", flip, np.random.default_rng(5)) for flip in (False, True)]
    assert both[0].left == both[1].left
    assert both[0].top == both[1].top


def coordinates(height: int, width: int) -> Image.Image:
    """Red is the row, green the column."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([rows, columns, 0 * rows], -1).astype(np.uint8))


def test_the_crop_is_where_time_ids_say():
    pixels = (apply(coordinates(64, 100), Framing((64, 100), (64, 100), 0, 17, (64, 64))) + 1) * 127.5
    assert pixels.shape == (3, 64, 64)
    assert np.allclose(pixels[1], np.arange(17, 81)[None, :], atol=1e-3)


def test_the_crop_counts_in_the_mirrored_picture():
    pixels = (apply(coordinates(64, 100), Framing((64, 100), (64, 100), 0, 17, (64, 64), flip=True)) + 1) * 127.5
    assert np.allclose(pixels[1], 99 - np.arange(17, 81)[None, :], atol=1e-3)


def test_cropping_before_resizing_equals_resizing_before_cropping():
    smooth = Image.fromarray(
        (127 + 120 * np.sin(np.mgrid[:90, :200].sum(0) / 9)).astype(np.uint8)[..., None].repeat(3, -1)
    )
    framing = Framing((90, 200), (45, 100), 0, 20, (45, 60))
    whole = np.asarray(smooth.resize((100, 45), Image.Resampling.LANCZOS), np.float32)[:, 20:80]
    inner = (slice(None), slice(3, -3))  # the filter reaches over the edge of the crop
    assert np.abs((apply(smooth, framing).transpose(1, 2, 0) + 1) * 127.5 - whole)[inner].max() <= 1.01


def test_a_thread_of_a_picture_needs_no_huge_one(tmp_path):
    Image.new("RGB", (10_000, 1), (255, 0, 0)).save(tmp_path / "a.png")
    pixels = decode(tmp_path / "a.png", frame((1, 10_000), (512, 2048)))
    assert pixels.shape == (3, 512, 2048)
    assert (pixels[0] == 1).all()
    assert (pixels[1] == -1).all()


def test_a_photograph_keeps_its_content():
    with get_sample_data("grace_hopper.jpg") as file:
        path = Path(file.name)
    size = picture_size(path)
    assert size == (600, 512)
    framed = decode(path, frame(size, (256, 256)))
    with Image.open(path) as photograph:
        reference = photograph.crop((0, 44, 512, 556)).resize((256, 256), Image.Resampling.BOX)
    assert np.abs(framed - (np.asarray(reference).transpose(2, 0, 1) / 127.5 - 1)).mean() < 0.02


RED = (255, 0, 0)


def save(path, picture, **options):
    picture.save(path, **options)
    return path


def sixteen_bit(path):
    return save(path, Image.fromarray(np.full((8, 8), 40_000, np.uint16)))


def transparent_palette(path):
    picture = Image.new("P", (8, 8), 0)
    picture.putpalette([*RED, 0, 0, 255])
    picture.putpixel((0, 0), 1)
    return save(path, picture, transparency=1)


MODES = {
    "rgb.png": (lambda path: save(path, Image.new("RGB", (8, 8), RED)), RED),
    "grey.png": (lambda path: save(path, Image.new("L", (8, 8), 100)), (100, 100, 100)),
    "bit.png": (lambda path: save(path, Image.new("1", (8, 8), 1)), (255, 255, 255)),
    "alpha.png": (lambda path: save(path, Image.new("RGBA", (8, 8), (255, 0, 0, 0))), (255, 255, 255)),
    "half.png": (lambda path: save(path, Image.new("RGBA", (8, 8), (255, 0, 0, 128))), (255, 127, 127)),
    "grey_alpha.png": (lambda path: save(path, Image.new("LA", (8, 8), (0, 128))), (127, 127, 127)),
    "cmyk.jpg": (lambda path: save(path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=100), (254, 0, 0)),
    "cmyk.tif": (lambda path: save(path, Image.new("CMYK", (8, 8), (0, 255, 255, 0))), RED),
    "sixteen.png": (sixteen_bit, (156, 156, 156)),
    "sixteen.tif": (sixteen_bit, (156, 156, 156)),
    "palette.gif": (lambda path: save(path, Image.new("RGB", (8, 8), RED).quantize(4)), RED),
    "photo.webp": (lambda path: save(path, Image.new("RGB", (8, 8), RED), lossless=True), RED),
    "transparent_palette.png": (transparent_palette, RED),
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_becomes_the_rgb_a_viewer_shows(tmp_path, name):
    make, expected = MODES[name]
    picture = load(make(tmp_path / name))
    assert picture.mode == "RGB"
    assert np.abs(np.asarray(picture, int)[-1, -1] - expected).max() <= 2


def test_transparent_palette_entries_are_white(tmp_path):
    assert load(transparent_palette(tmp_path / "a.png")).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_picture_and_size_as_pillow_does(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a.{suffix}", coordinates(24, 40), exif=exif)
    assert picture_size(path) == ((40, 24) if orientation >= 5 else (24, 40))
    with Image.open(path) as picture:
        assert np.array_equal(load(path), ImageOps.exif_transpose(picture))


def test_sizes_are_read_from_headers_alone(tmp_path):
    path = save(tmp_path / "a.png", Image.effect_noise((300, 200), 50))
    path.write_bytes(path.read_bytes()[:100])
    assert picture_size(path) == (200, 300)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\nnonsense"])
def test_what_is_no_picture_is_told_from_its_header(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(BadPictureError, match=r"not a picture|broken picture"):
        picture_size(tmp_path / "a.png")


def test_a_truncated_picture_is_told_on_decoding(tmp_path):
    path = save(tmp_path / "a.png", Image.effect_noise((64, 64), 50))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(BadPictureError, match="broken picture"):
        decode(path, frame((64, 64), (32, 32)))


def test_a_picture_replaced_by_one_of_another_size_is_told(tmp_path):
    path = save(tmp_path / "a.png", Image.new("RGB", (40, 24)))
    with pytest.raises(BadPictureError, match="size changed"):
        decode(path, frame((64, 64), (32, 32)))


def test_a_removed_picture_is_told(tmp_path):
    with pytest.raises(BadPictureError, match="gone"):
        picture_size(tmp_path / "a.png")
