"""The judge sees every class of the tiny world, through noise and blur, and sees nothing where nothing is."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from demo.tiny import world
from demo.tiny.judge import judge, matches

CLASSES = [(shape, colour, ground) for shape in world.SHAPES for colour in world.COLOURS for ground in world.GROUNDS]


def with_noise(picture, rng, sigma):
    pixels = np.asarray(picture, float)
    return Image.fromarray(np.clip(pixels + rng.normal(0, sigma, pixels.shape), 0, 255).astype(np.uint8))


def blurred(picture, radius):
    return picture.filter(ImageFilter.GaussianBlur(radius))


DAMAGES = {
    "none": lambda picture, rng: picture,
    "noise": lambda picture, rng: with_noise(picture, rng, 12),
    "blur": lambda picture, rng: blurred(picture, 1.0),
    "blur and noise": lambda picture, rng: with_noise(blurred(picture, 0.7), rng, 10),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_drawn_pictures_are_judged_right_and_never_taken_for_another_class(damage):
    rng = np.random.default_rng(11)
    right = wrong = 0
    for shape, colour, ground in CLASSES * 3:
        verdict = judge(DAMAGES[damage](world.draw(shape, colour, ground, rng), rng))
        right += verdict[:2] == (colour, shape)
        wrong += verdict.colour not in (None, colour) or verdict.shape not in (None, shape)
    assert right >= 0.99 * 3 * len(CLASSES)
    assert wrong <= 0.002 * 3 * len(CLASSES)


def anything(picture):
    verdict = judge(picture)
    return verdict.colour is not None and verdict.shape is not None


def test_blank_pictures_show_nothing():
    for colour in (*world.GROUNDS.values(), *world.COLOURS.values()):
        assert judge(Image.new("RGB", (64, 64), colour)) == (None, None, 0.0)


@pytest.mark.parametrize("sigma", [2, 10, 40, 100, 200])
def test_noise_shows_nothing_fine_or_coarse(sigma):
    rng = np.random.default_rng(5)
    for cells in (64, 16, 8, 4):
        for _ in range(25):
            noise = np.clip(rng.normal(110, sigma, (cells, cells, 3)), 0, 255).astype(np.uint8)
            assert not anything(Image.fromarray(noise).resize((64, 64), Image.Resampling.BICUBIC))


def test_a_shape_of_two_colours_has_no_clear_colour():
    red, green = (world.draw("square", colour, "black", np.random.default_rng(0)) for colour in ("red", "green"))
    halves = red.copy()
    box = (0, 0, 64, 64)
    striped = np.zeros((64, 64), np.uint8)
    striped[:, (np.arange(64) // 8) % 2 == 0] = 255
    halves.paste(green, box, Image.fromarray(striped))
    assert judge(halves).colour is None


def test_a_colour_between_two_names_has_none():
    rng = np.random.default_rng(0)
    layer = world.corners("circle") * 0.3 + 0.5, (130, 128, 130)
    assert judge(world.paint(64, world.GROUNDS["black"], [layer])).colour is None
    assert judge(world.draw("circle", "red", "black", rng)).colour == "red"


def test_half_a_shape_is_not_a_shape():
    picture = world.paint(64, (0, 0, 0), [(world.corners("circle") * 0.3 + 0.5, world.COLOURS["red"])])
    picture.paste((0, 0, 0), (0, 0, 64, 32))
    assert judge(picture).shape is None


def test_two_shapes_are_not_one():
    layers = [(world.corners("circle") * 0.2 + place, world.COLOURS["red"]) for place in (0.27, 0.73)]
    assert judge(world.paint(64, (0, 0, 0), layers)).shape is None


def test_a_match_needs_both_colour_and_shape():
    picture = world.draw("star", "magenta", "navy", np.random.default_rng(0))
    assert matches(picture, "magenta", "star")
    assert not matches(picture, "red", "star")
    assert not matches(picture, "magenta", "cross")
