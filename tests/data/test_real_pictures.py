"""A photograph in every mode, orientation and format: each must come out as a viewer shows it."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from matplotlib.cbook import get_sample_data
from PIL import Image

from gm.config.sections.data import DataConfig
from gm.data import datasets, transforms
from gm.errors import SuiteError

TARGET = (96, 64)
HEIGHT, WIDTH = 150, 128  # a quarter of the photograph's sides
DISPLAYED = {  # how the pixels of an upright picture lie in a file of each EXIF orientation (TIFF 6.0, tag 274)
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    with get_sample_data("grace_hopper.jpg") as file, Image.open(file) as picture:
        return np.asarray(picture.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BOX))


@pytest.fixture
def seen(tmp_path):
    """What training sees of the one picture in a folder: (H, W, 3), values of 0 to 255."""

    def read(expected_size=(HEIGHT, WIDTH)) -> np.ndarray:
        [sample] = datasets.scan(DataConfig(path=str(tmp_path), instance_prompt="a portrait", verify="pixels"))
        assert sample.size == expected_size
        framing = transforms.frame(sample.size, TARGET)
        return (transforms.decode(sample.picture, framing).transpose(1, 2, 0) + 1) * 127.5

    return read


def framed(pixels: np.ndarray) -> np.ndarray:
    """The same of an RGB array, by Pillow alone: resized to cover, then cropped in the middle."""
    picture = Image.fromarray(np.ascontiguousarray(pixels, np.uint8))
    scale = max(TARGET[0] / picture.height, TARGET[1] / picture.width)
    height, width = round(picture.height * scale), round(picture.width * scale)
    top, left = (height - TARGET[0]) // 2, (width - TARGET[1]) // 2
    whole = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS), np.float32)
    return whole[top : top + TARGET[0], left : left + TARGET[1]]


def assert_same(found: np.ndarray, expected: np.ndarray, mean: float = 0.6) -> None:
    """Equal but for the filter at the crop's edge and, where ``mean`` is larger, for what the format loses."""
    inner = (slice(3, -3), slice(3, -3))
    assert found.shape == expected.shape
    assert np.abs(found - expected)[inner].mean() <= mean


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


@pytest.mark.parametrize("orientation", DISPLAYED)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_every_orientation_is_upright(tmp_path, photograph, seen, orientation, suffix):
    stored = Image.fromarray(np.ascontiguousarray(DISPLAYED[orientation](photograph)))
    options = {"jpg": {"quality": 95, "subsampling": 0}, "webp": {"lossless": True}}.get(suffix, {})
    stored.save(tmp_path / f"a.{suffix}", exif=exif(orientation), **options)
    assert_same(seen(), framed(photograph), 1.5 if suffix == "jpg" else 0.6)


FORMATS = {  # name: (options of saving, largest mean error)
    "a.png": ({}, 0.6),
    "a.PNG": ({}, 0.6),
    "a.bmp": ({}, 0.6),
    "a.tif": ({}, 0.6),
    "lzw.tiff": ({"compression": "tiff_lzw"}, 0.6),
    "a.jpg": ({"quality": 95, "subsampling": 0}, 1.5),
    "a.JPEG": ({"quality": 95, "subsampling": 0}, 1.5),
    "progressive.jpg": ({"quality": 95, "subsampling": 0, "progressive": True}, 1.5),
    "a.webp": ({"quality": 95}, 3),
    "lossless.webp": ({"lossless": True}, 0.6),
    "interlaced.gif": ({"interlace": 1}, 6),  # 256 colours
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_shows_the_photograph(tmp_path, photograph, seen, name):
    options, mean = FORMATS[name]
    Image.fromarray(photograph).save(tmp_path / name, **options)
    assert_same(seen(), framed(photograph), mean)


def alpha_of(photograph: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, WIDTH))


def over_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.rint(pixels * share + 255 * (1 - share))


def grey_of(photograph: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(photograph).convert("L"))


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_what_is_transparent_lies_over_white(tmp_path, photograph, seen, name):
    alpha = alpha_of(photograph)
    picture = Image.fromarray(np.dstack([photograph, alpha]), "RGBA")
    picture.save(tmp_path / name, **({"lossless": True, "exact": True} if name == "a.webp" else {}))
    assert_same(seen(), framed(over_white(photograph, alpha)))


def test_grey_with_alpha_lies_over_white(tmp_path, photograph, seen):
    alpha, grey = alpha_of(photograph), grey_of(photograph)
    Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha))).save(tmp_path / "a.png")
    assert_same(seen(), framed(over_white(three(grey), alpha)))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_grey_is_grey(tmp_path, photograph, seen, name):
    Image.fromarray(grey_of(photograph)).save(tmp_path / name, **({"quality": 95} if name == "a.jpg" else {}))
    assert_same(seen(), framed(three(grey_of(photograph))), 1.5)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bits_of_grey_are_8_of_each_colour(tmp_path, photograph, seen, name):
    Image.fromarray(grey_of(photograph).astype(np.uint16) * 257).save(tmp_path / name)
    assert_same(seen(), framed(three(grey_of(photograph))))


def test_16_bits_of_each_colour_are_8(tmp_path, photograph, seen):
    """Pillow writes no such PNG, and other programs do."""
    rows = (photograph.astype(">u2") * 257).reshape(HEIGHT, -1)
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    head = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    parts = chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    assert_same(seen(), framed(photograph))


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_cmyk_has_its_colours(tmp_path, photograph, seen, name):
    options = {"quality": 95} if name == "a.jpg" else {}
    Image.fromarray(photograph).convert("CMYK").save(tmp_path / name, **options)
    assert_same(seen(), framed(photograph), 3)


@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.bmp"])
def test_a_palette_is_looked_up(tmp_path, photograph, seen, name):
    few = Image.fromarray(photograph).quantize(16)
    few.save(tmp_path / name)
    assert_same(seen(), framed(np.asarray(few.convert("RGB"))))


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_a_transparent_colour_of_a_palette_is_white(tmp_path, photograph, seen, name):
    few = Image.fromarray(photograph).quantize(16)
    few.save(tmp_path / name, transparency=3)
    expected = np.array(few.convert("RGB"))
    expected[np.asarray(few) == 3] = 255
    assert_same(seen(), framed(expected))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_one_bit_is_black_and_white(tmp_path, photograph, seen, name):
    dithered = Image.fromarray(photograph).convert("1")
    dithered.save(tmp_path / name)
    assert_same(seen(), framed(three(np.asarray(dithered.convert("L")))))


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_of_an_animation_the_first_picture_is_taken(tmp_path, photograph, seen, name):
    first, later = Image.fromarray(photograph).quantize(64).convert("RGB"), Image.new("RGB", (WIDTH, HEIGHT))
    options = {"lossless": True} if name == "a.webp" else {}
    first.save(tmp_path / name, save_all=True, append_images=[later, later], duration=100, **options)
    assert_same(seen(), framed(np.asarray(first)), 1)


@pytest.mark.parametrize(("kind", "name"), [("JPEG", "a.png"), ("PNG", "a.jpg"), ("WEBP", "a.gif")])
def test_a_wrong_suffix_does_no_harm(tmp_path, photograph, seen, kind, name):
    Image.fromarray(photograph).save(tmp_path / name, kind, quality=95)
    assert_same(seen(), framed(photograph), 3)


def spoiled(folder: Path, photograph: np.ndarray) -> dict[str, str]:
    """Write what cannot be used; gives why."""
    for name in ("cut.jpg", "cut.png", "cut.webp", "cut.gif", "cut.tif"):
        Image.fromarray(photograph).save(folder / name)
        (folder / name).write_bytes((folder / name).read_bytes()[:-2000])
    (folder / "nothing.png").write_bytes(b"")
    (folder / "page.jpg").write_bytes(b"<!DOCTYPE html><title>404</title>")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("F", (32, 32)).save(folder / "numbers.tif")
    return {
        **dict.fromkeys(("cut.jpg", "cut.png", "cut.webp", "cut.gif", "cut.tif"), "broken picture|not a picture"),
        "nothing.png": "not a picture",
        "page.jpg": "not a picture",
        "dot.png": "only 1x1 px",
        "numbers.tif": "floating-point picture",
    }


def test_all_that_cannot_be_used_is_told_at_once_with_the_reason(tmp_path, photograph):
    (tmp_path / "data").mkdir()
    reasons = spoiled(tmp_path / "data", photograph)
    for index in range(3):
        Image.fromarray(photograph).save(tmp_path / f"data/{index}.png")
    data = DataConfig(path=str(tmp_path / "data"), instance_prompt="p", verify="pixels")
    samples, problems = datasets.inspect(data)
    assert [sample.id for sample in samples] == ["0.png", "1.png", "2.png"]
    assert {problem.id for problem in problems} == reasons.keys()
    for problem in problems:
        assert any(reason in problem.reason for reason in reasons[problem.id].split("|")), problem
    with pytest.raises(SuiteError, match=r"9 of 12 samples .* and 6 more; all of them: .*bad.csv"):
        datasets.scan(data, tmp_path / "bad.csv")
    assert len((tmp_path / "bad.csv").read_text().splitlines()) == 10
