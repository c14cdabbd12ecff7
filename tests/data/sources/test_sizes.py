"""Sizes from the first bytes of a file are those of Pillow, or it is asked."""

import contextlib
import gc
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.cbook import get_sample_data
from PIL import Image, PngImagePlugin

from gm.data import transforms
from gm.data.prefetch import uncollected
from gm.data.sample import PictureFile
from gm.data.sources.sizes import upright_size
from gm.data.transforms import BadPictureError

WIDTH, HEIGHT = 45, 30


def photograph() -> Image.Image:
    with get_sample_data("grace_hopper.jpg") as file, Image.open(file) as picture:
        return picture.convert("RGB").resize((WIDTH, HEIGHT))


def exif(orientation: int | None, thumbnail: int = 0) -> bytes:
    """As a camera writes it: the resolution, the maker, and behind them perhaps a small picture."""
    tags = Image.Exif()
    tags[0x010F], tags[0x011A], tags[0x0128] = "a maker of cameras", 300.0, 2
    if orientation:
        tags[0x0112] = orientation
    return tags.tobytes() + bytes(thumbnail)


def written(kind: str, picture: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def text(**entries: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for name, value in entries.items():
        info.add_text(name, value)
    return info


def ordinary() -> dict[str, bytes]:
    """Pictures that need no Pillow."""
    photo = photograph()
    files = {f"jpeg {n}": written("JPEG", photo, exif=exif(n)) for n in range(1, 9)}
    files |= {f"png {n}": written("PNG", photo, exif=exif(n)) for n in range(1, 9)}
    files["jpeg"] = written("JPEG", photo)
    files["jpeg with a thumbnail"] = written("JPEG", photo, exif=exif(6, thumbnail=20_000))
    files["jpeg without an orientation"] = written("JPEG", photo, exif=exif(None))
    options = {"progressive": True, "comment": b"hello", "icc_profile": bytes(3000), "dpi": (72, 72)}
    files["jpeg with everything"] = written("JPEG", photo, exif=exif(8), **options)
    for mode in ("L", "CMYK"):
        files[f"jpeg {mode}"] = written("JPEG", photo.convert(mode))
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16"):
        grey = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
        files[f"png {mode}"] = written("PNG", grey if mode == "I;16" else photo.convert(mode))
    files["png of a program that draws"] = written("PNG", photo, pnginfo=text(parameters="a cat, steps: 30"))
    resources = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0\0\0\0\x05words\0" + b"8BIM\x04\x25\x03abc\0\0\0\x04done"
    segment = b"\xff\xed" + struct.pack(">H", 2 + len(resources)) + resources
    files["jpeg of a program that retouches"] = files["jpeg 6"][:2] + segment + files["jpeg 6"][2:]
    files["png with a profile"] = written("PNG", photo, icc_profile=bytes(300))
    files["png with a density"] = written("PNG", photo, dpi=(300, 300))
    return files


LYING = {f"{kind} {orientation}" for kind in ("jpeg", "png") for orientation in (5, 6, 7, 8)}
LYING |= {"jpeg with a thumbnail", "jpeg with everything", "jpeg of a program that retouches"}


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def unusual() -> dict[str, bytes]:
    """Pictures, and what is none, that Pillow is asked about."""
    photo = photograph()
    files = {kind: written(kind, photo) for kind in ("WEBP", "GIF", "BMP", "TIFF")}
    files["jpeg turned by XMP"] = written("JPEG", photo, xmp=XMP)
    files["jpeg turned by XMP in spite of EXIF"] = written("JPEG", photo, xmp=XMP, exif=exif(None))
    files["png turned by XMP"] = written("PNG", photo, pnginfo=text(**{"XML:com.adobe.xmp": XMP.decode()}))
    profile = "\nexif\n      8\n" + exif(6).hex()
    files["png turned by text"] = written("PNG", photo, pnginfo=text(**{"Raw profile type exif": profile}))
    files["two pictures in one"] = written("MPO", photo, save_all=True, append_images=[photo])
    files["png with a profile of a megabyte"] = written("PNG", photo, icc_profile=bytes(1 << 20) + b"!")
    files["moving png"] = written("PNG", photo, save_all=True, append_images=[photo.rotate(90)])
    files |= {
        "nothing": b"",
        "page": b"<!DOCTYPE html>",
        "only a mark": b"\xff\xd8\xff",
        "not a png": b"\x89PNG\r\n\x1a\n",
    }
    head = struct.pack(">IIBBBBB", 70_000, 70_000, 8, 2, 0, 0, 0)
    huge = b"\0\0\0\rIHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head)) + b"\0\0\0\0IDAT"
    files["a picture that fills the memory"] = b"\x89PNG\r\n\x1a\n" + huge
    return files


ORDINARY, UNUSUAL = ordinary(), unusual()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What the first bytes say of a file with these contents, and what Pillow says: a size, or None for no picture."""
    path = tmp_path_factory.mktemp("sizes") / "picture"

    def sizes(content: bytes, before: bytes = b"", after: bytes = b"") -> tuple:
        path.write_bytes(before + content + after)
        file = PictureFile(path, len(before), len(content) if before or after else None)
        try:
            pillow = transforms.picture_size(file)
        except BadPictureError:
            pillow = None
        return upright_size(file), pillow

    return sizes


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_pictures_have_the_size_that_pillow_says(both, name):
    found, pillow = both(ORDINARY[name])
    assert found == pillow
    assert found == ((WIDTH, HEIGHT) if name in LYING else (HEIGHT, WIDTH))


@pytest.mark.parametrize("name", ORDINARY)
def test_they_are_read_from_their_place_in_a_shard(both, name):
    found, pillow = both(ORDINARY[name], b"\xff\xd8" * 512, b"\0" * 512)
    assert found == pillow is not None


@pytest.mark.parametrize("name", UNUSUAL)
def test_of_all_others_it_says_nothing(both, name):
    assert both(UNUSUAL[name])[0] is None


@pytest.mark.filterwarnings("ignore")  # Pillow's, of broken EXIF data
@settings(max_examples=400, deadline=None)
@given(
    name=st.sampled_from(sorted(ORDINARY)),
    changes=st.lists(st.tuples(st.integers(2, 700), st.integers(0, 255)), max_size=3),
    cut=st.none() | st.integers(0, 1000),
    drop=st.none() | st.tuples(st.integers(2, 300), st.integers(1, 20)),
)
@example(name="jpeg 6", changes=[], cut=200, drop=None)
def test_whatever_is_wrong_with_a_file_pillow_would_not_have_said_otherwise(both, name, changes, cut, drop):
    content = bytearray(ORDINARY[name])
    for place, value in changes:
        if place < len(content):
            content[place] = value
    if drop is not None:
        del content[drop[0] : sum(drop)]
    found, pillow = both(bytes(content[:cut]))
    assert found is None or found == pillow


@pytest.mark.filterwarnings("ignore")
def test_no_picture_leaves_anything_to_the_collector_which_is_off_while_many_are_looked_at(tmp_path):
    contents = {**ORDINARY, **UNUSUAL, "cut": ORDINARY["jpeg"][:-100], "cut before": ORDINARY["jpeg"][:100]}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    gc.collect()
    with uncollected():
        for name in contents:
            for look in (transforms.picture_size, transforms.load):
                with contextlib.suppress(BadPictureError):
                    look(PictureFile(tmp_path / name))
        assert gc.collect() == 0
