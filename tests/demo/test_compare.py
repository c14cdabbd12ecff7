"""The judge's column: what a prompt of the tiny world names, and how many pictures show it."""

import pytest

from demo.tiny import world
from demo.tiny.compare import named, share
from gm.errors import UsageError


def test_pictures_are_held_against_their_own_prompts():
    pictures = [
        world.paint(64, world.GROUNDS["grey"], [(world.corners(shape) * 0.3 + 0.5, world.COLOURS["red"])])
        for shape in ("circle", "square", "circle", "square")
    ]
    assert share(pictures, ["a red circle on grey"] * 4) == 0.5
    assert share(pictures, ["a red circle", "a red square", "a blue circle", "a red square"]) == 0.75
    assert named("A large MAGENTA star") == ("magenta", "star")
    with pytest.raises(UsageError, match="names no colour and shape"):
        share(pictures, ["a cat"] * 4)
