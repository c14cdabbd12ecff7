import json

import pytest
from PIL import Image

from gm.sampling.output import contact_sheet, picture_name, save_manifest, save_picture, slug
from gm.sampling.prompts import Wish
from gm.sampling.settings import Request, Settings

WISH = Wish(Request("A red circle, on grey!", 42, "blür"), Settings(height=64, width=64))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("A red circle, on grey!", "a-red-circle-on-grey"),
        ("../../etc/passwd", "etc-passwd"),
        ("一只红色的圆", "一只红色的圆"),
        ("!!!", "picture"),
        ("word " * 30, "word-word-word-word-word-word-word-word"),
    ],
)
def test_slug_is_safe_as_a_part_of_a_file_name(prompt, expected):
    assert slug(prompt) == expected


def test_name_holds_index_seed_and_prompt():
    assert picture_name(3, WISH) == "003_seed42_a-red-circle-on-grey.png"


def test_a_png_says_how_it_was_made_and_comes_out_the_same_each_time(tmp_path):
    picture = Image.new("RGB", (64, 64), (200, 10, 10))
    for name in ("a.png", "b.png"):
        save_picture(tmp_path / name, picture, WISH, {"weight": "m.ckpt"})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as read:
        assert read.getpixel((5, 5)) == (200, 10, 10)
        assert read.text["prompt"] == WISH.request.prompt
        assert read.text["negative_prompt"] == "blür"
        assert read.text["seed"] == "42"
        settings = json.loads(read.text["settings"])
    assert settings["sampler"] == "euler"
    assert settings["weight"] == "m.ckpt"
    assert settings["seed"] == 42


def test_manifest_lists_file_prompt_and_seed(tmp_path):
    save_manifest(tmp_path, ["000.png"], [WISH], {"weight": "m.ckpt"})
    (image,) = json.loads((tmp_path / "manifest.json").read_text())["images"]
    assert (image["file"], image["prompt"], image["seed"]) == ("000.png", WISH.request.prompt, 42)


@pytest.mark.parametrize("size", [(64, 64), (1024, 512), (3000, 8), (300, 900)])
def test_contact_sheet_shows_every_picture(size):
    pictures = [Image.new("RGB", size, colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    sheet = contact_sheet(pictures, ["a red one", "日本語 " * 40, ""], 2)
    colours = {colour for _, colour in sheet.getcolors(1 << 20)}
    assert {(255, 0, 0), (0, 255, 0), (0, 0, 255)} <= colours
    assert max(sheet.size) < 1000
