"""What does a picture of the tiny world show? A judge without a network: dominant colour and template match.

The ground is the median of the border, the shape is what lies far from it; its colour is the nearest named one, its
outline is laid over templates drawn by ``world.py``. A picture that is empty, noisy or unclear shows nothing.

    python -m demo.tiny.judge picture.png ...    # prints what each picture shows
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from demo.tiny import world
from gm.config.flags import Parser
from gm.errors import run_door

FOREGROUND_DISTANCE = 40.0  # from the ground, in RGB: half way to the closest colour there is on any ground
COLOUR_DISTANCE = 70.0  # to a named colour: a little more than half the least distance between two of them
LEAST_AREA, LARGEST_AREA = 0.03, 0.65  # of the picture
LEAST_ROW = 2  # a row or column with fewer foreground pixels is outside the shape: noise, or the end of a tip
STRETCH = 1.35  # a shape wider or higher than this, relative to its template, is another shape
TEMPLATE_SIDE = 32
LEAST_OVERLAP = 0.80
LEAST_LEAD = 0.04  # of the best shape over the second best
PURITY = 0.70  # part of the shape's inside that has its colour


class Verdict(NamedTuple):
    """What a picture shows; None where nothing is clear. ``score`` is the overlap with the nearest template, 0 to 1."""

    colour: str | None
    shape: str | None
    score: float


NOTHING = Verdict(None, None, 0.0)


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) of the rows and columns that have more than stray pixels."""
    rows = np.flatnonzero(mask.sum(1) >= LEAST_ROW)
    columns = np.flatnonzero(mask.sum(0) >= LEAST_ROW)
    if not len(rows) or not len(columns):
        return None
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def normalise(mask: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """The mask inside the box, stretched to (TEMPLATE_SIDE, TEMPLATE_SIDE), values 0 to 1."""
    side = (TEMPLATE_SIDE, TEMPLATE_SIDE)
    picture = Image.fromarray((mask * 255).astype(np.uint8)).resize(side, Image.Resampling.BOX, box=box)
    return np.asarray(picture, np.float32) / 255


def silhouette(picture: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Smoothed pixels (H, W, 3) and the mask (H, W) of what lies far from the ground."""
    pixels = np.asarray(picture.filter(ImageFilter.MedianFilter(3)), np.float32)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    distance = np.linalg.norm(pixels - np.median(border, axis=0), axis=-1)
    mask = distance > FOREGROUND_DISTANCE
    if mask.any():
        # The edge of a shape is half way between its own colour and the ground, whatever its contrast.
        mask = distance > max(FOREGROUND_DISTANCE, float(np.median(distance[mask])) / 2)
    return pixels, mask


@cache
def templates() -> list[tuple[str, np.ndarray, float]]:
    """(shape, normalised mask, width / height) of every shape at a few sizes, seen as a picture is seen."""
    found = []
    for shape in world.SHAPES:
        for extent in np.linspace(world.SMALLEST, world.LARGEST, 4):
            layer = world.corners(shape) * extent / 2 + 0.5, (255, 255, 255)
            _, mask = silhouette(world.paint(world.SIZE, (0, 0, 0), [layer]))
            left, top, right, bottom = box = bounding_box(mask)
            found.append((shape, normalise(mask, box), (right - left) / (bottom - top)))
    return found


def overlap(mask: np.ndarray, template: np.ndarray) -> float:
    """Intersection over union of two masks with values 0 to 1."""
    return float(np.minimum(mask, template).sum() / np.maximum(mask, template).sum())


def named_colour(pixels: np.ndarray, mask: np.ndarray) -> str | None:
    """The colour that most of the shape's inside has, if it has a name: (H, W, 3), (H, W) bool."""
    inside = np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.MinFilter(3))) > 0
    if inside.sum() < 0.2 * mask.sum():
        inside = mask
    dominant = np.median(pixels[inside], axis=0)
    distances = {name: np.linalg.norm(dominant - rgb) for name, rgb in world.COLOURS.items()}
    nearest = min(distances, key=distances.get)
    pure = np.linalg.norm(pixels[inside] - dominant, axis=-1) < COLOUR_DISTANCE
    return nearest if distances[nearest] < COLOUR_DISTANCE and pure.mean() > PURITY else None


def judge(picture: Image.Image) -> Verdict:
    """The colour and shape that a picture shows."""
    picture = picture.convert("RGB").resize((world.SIZE, world.SIZE), Image.Resampling.BOX)
    pixels, mask = silhouette(picture)
    box = bounding_box(mask)
    if box is None or not LEAST_AREA < mask.mean() < LARGEST_AREA:
        return NOTHING
    left, top, right, bottom = box
    aspect, seen = (right - left) / (bottom - top), normalise(mask, box)
    scores = dict.fromkeys(world.SHAPES, 0.0)
    for shape, template, template_aspect in templates():
        if 1 / STRETCH < aspect / template_aspect < STRETCH:
            scores[shape] = max(scores[shape], overlap(seen, template))
    second, best = sorted(scores.values())[-2:]
    shape = max(scores, key=scores.get) if best >= LEAST_OVERLAP and best - second >= LEAST_LEAD else None
    return Verdict(named_colour(pixels, mask), shape, best)


def matches(picture: Image.Image, colour: str, shape: str) -> bool:
    """Whether the picture shows a shape of this colour."""
    return judge(picture)[:2] == (colour, shape)


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("pictures", nargs="+", metavar="PICTURE")
    for path in parser.parse(arguments).pictures:
        verdict = judge(Image.open(path))
        print(
            f"{path}: {verdict.colour or 'no clear colour'} {verdict.shape or 'no clear shape'} ({verdict.score:.2f})"
        )


if __name__ == "__main__":
    run_door(main)
