import json
from dataclasses import replace

import pytest
from PIL import Image

from gm.errors import SuiteError
from gm.sampling.output import (
    contact_sheet,
    picture_name,
    read_settings,
    save_manifest,
    save_picture,
    sheet_of,
    slug,
)
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


def test_prompts_with_several_pictures_have_a_row_each():
    wishes = [Wish(Request(prompt, seed), Settings()) for prompt, seed in (("a", 1), ("a", 2), ("b", 7), ("c", 3))]
    pictures = [Image.new("RGB", (256, 256), (200, 10 * index, 10)) for index in range(4)]
    sheet = sheet_of(pictures, wishes)
    cell, line = 256 + 8, 256 + 2 * 14 + 8
    assert sheet.size == (2 * cell + 8, 3 * line + 8)
    places = [(8, 8), (8 + cell, 8), (8, 8 + line), (8, 8 + 2 * line)]
    assert [sheet.getpixel(place) for place in places] == [(200, 10 * index, 10) for index in range(4)]
    assert sheet.getpixel((8 + cell, 8 + line)) == (245, 245, 245)
    assert sheet_of(pictures, [replace(WISH, request=Request(name, 1)) for name in "abcd"]).size[0] == 2 * cell + 8


def test_settings_are_read_back_from_a_picture(tmp_path):
    save_picture(tmp_path / "a.png", Image.new("RGB", (8, 8)), WISH, {"weight": "m.ckpt"})
    found = read_settings(tmp_path / "a.png")
    assert (found["prompt"], found["seed"], found["height"], found["weight"]) == (WISH.request.prompt, 42, 64, "m.ckpt")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_text("no picture")
    for name in ("b.png", "c.png"):
        with pytest.raises(SuiteError, match=f"{name} has no settings inside"):
            read_settings(tmp_path / name)
