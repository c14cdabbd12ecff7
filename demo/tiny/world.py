"""The tiny world: coloured shapes on plain grounds, drawn here and nowhere downloaded, with their captions.

The base world is what the shipped model knows: ``BASE_COLOURS`` x ``BASE_SHAPES`` x ``GROUNDS``. The fine-tuning set
teaches ``NEW_SHAPE`` and ``NEW_COLOUR``; some combinations are held out, to see whether what was learned carries over.

    python -m demo.tiny.world runs/world    # writes the fine-tuning set as a folder of pictures and captions
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from gm.config.flags import Parser
from gm.errors import run_door
from gm.files import replacing, write_text

# Near the corners of the RGB cube: any two are at least 120 (of 442) apart, which survives the VAE and the judge.
COLOURS = {
    "red": (225, 30, 35),
    "green": (35, 170, 55),
    "blue": (45, 85, 240),
    "yellow": (245, 220, 45),
    "white": (248, 248, 248),
    "cyan": (40, 215, 225),
    "magenta": (225, 45, 205),
}
GROUNDS = {"grey": (105, 105, 105), "black": (12, 12, 12), "navy": (22, 26, 78)}

NEW_COLOUR = "magenta"
NEW_SHAPE = "star"
BASE_COLOURS = tuple(colour for colour in COLOURS if colour != NEW_COLOUR)
BASE_SHAPES = ("circle", "square", "triangle", "cross")
SHAPES = (*BASE_SHAPES, NEW_SHAPE)

# Never shown together while fine-tuning: stars of these colours, these shapes in the new colour, and the new colour
# with the new shape.
HELD_OUT_COLOURS = ("blue",)
HELD_OUT_SHAPES = ("cross",)

SIZE = 64
SMALLEST, LARGEST = 0.42, 0.75  # a shape's extent as a part of the picture's side
SMALLEST_NEW = 0.6  # the shape to be learned is shown large: its tips must survive latents of 8 x 8
SUPERSAMPLING = 8
CROSS_ARM = 0.34  # width of an arm as a part of the cross
STAR_INNER = 0.42  # radius of a star's inner corners as a part of the outer ones


class Example(NamedTuple):
    """A picture with its caption, and what it shows."""

    picture: Image.Image
    caption: str
    colour: str
    shape: str


class Prompt(NamedTuple):
    """A prompt and what a picture of it must show."""

    text: str
    colour: str
    shape: str


def caption(colour: str, shape: str, ground: str) -> str:
    return f"a {colour} {shape} on {ground}"


def star_corners(points: int = 5, inner: float = STAR_INNER, turn: float = 0.0) -> np.ndarray:
    """Corners of a star on the unit circle, one tip up: (2 * points, 2)."""
    angles = turn - math.pi / 2 + np.arange(2 * points) * math.pi / points
    radii = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def corners(shape: str) -> np.ndarray:
    """The outline of a shape within the square [-1, 1] x [-1, 1], touching it left and right: (N, 2)."""
    if shape == "circle":
        angles = np.arange(128) * 2 * math.pi / 128
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if shape == "square":
        return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float)
    if shape == "triangle":
        return np.array([(-1, 0.87), (0, -0.87), (1, 0.87)], float)
    if shape == "cross":
        a = CROSS_ARM
        right_and_down = [(a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1)]
        return np.array(right_and_down + [(-x, -y) for x, y in right_and_down], float)
    if shape == "star":
        outline = star_corners()
        low, high = outline.min(0), outline.max(0)
        return (outline - (low + high) / 2) * 2 / (high[0] - low[0])
    raise ValueError(f"no shape {shape!r}: one of {', '.join(SHAPES)}")


def paint(size: int, ground: Sequence[int], layers: Iterable[tuple[np.ndarray, Sequence[int]]]) -> Image.Image:
    """Filled outlines (N, 2) in units of the picture's side over a plain ground, with smooth edges."""
    fine = size * SUPERSAMPLING
    picture = Image.new("RGB", (fine, fine), tuple(ground))
    pen = ImageDraw.Draw(picture)
    for outline, colour in layers:
        pen.polygon([(float(x) * fine, float(y) * fine) for x, y in outline], fill=tuple(colour))
    return picture.reduce(SUPERSAMPLING)


def draw(
    shape: str, colour: str, ground: str, rng: np.random.Generator, size: int = SIZE, smallest: float = SMALLEST
) -> Image.Image:
    """One shape of random extent and place, wholly inside the picture, with a thin border of ground around it."""
    extent = rng.uniform(smallest, LARGEST)
    margin = extent / 2 + 0.04
    centre = rng.uniform(margin, 1 - margin, size=2)
    return paint(size, GROUNDS[ground], [(corners(shape) * extent / 2 + centre, COLOURS[colour])])


def example(shape: str, colour: str, ground: str, rng: np.random.Generator) -> Example:
    smallest = SMALLEST_NEW if shape == NEW_SHAPE else SMALLEST
    return Example(draw(shape, colour, ground, rng, smallest=smallest), caption(colour, shape, ground), colour, shape)


def combinations(colours: Sequence[str], shapes: Sequence[str]) -> list[tuple[str, str, str]]:
    """Every (shape, colour, ground)."""
    return [(shape, colour, ground) for shape in shapes for colour in colours for ground in GROUNDS]


def base_world(count: int, seed: int) -> list[Example]:
    """``count`` pictures of the base world, every combination equally often but for the remainder, shuffled."""
    rng = np.random.default_rng(seed)
    every = combinations(BASE_COLOURS, BASE_SHAPES)
    chosen = [every[index % len(every)] for index in range(count)]
    return [example(*chosen[index], rng) for index in rng.permutation(count)]


def taught_combinations() -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    """What fine-tuning shows: the new shape in base colours, the new colour on base shapes; nothing held out."""
    colours = [colour for colour in BASE_COLOURS if colour not in HELD_OUT_COLOURS]
    shapes = [shape for shape in BASE_SHAPES if shape not in HELD_OUT_SHAPES]
    return combinations(colours, [NEW_SHAPE]), combinations([NEW_COLOUR], shapes)


def finetune_set(seed: int, stars: int = 200, coloured: int = 120, kept: int = 320) -> list[Example]:
    """Pictures that teach the new shape and the new colour, and ``kept`` of the base world among them.

    The base pictures are prior preservation (Ruiz et al. 2022, arXiv 2208.12242, section 3.2): without them the
    model would forget what it knew while it learns.
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for every, count in zip((*taught_combinations(), combinations(BASE_COLOURS, BASE_SHAPES)), (stars, coloured, kept)):
        chosen += [every[index % len(every)] for index in range(count)]
    return [example(*chosen[index], rng) for index in rng.permutation(len(chosen))]


def prompts(colours: Sequence[str], shapes: Sequence[str], grounds: int) -> list[Prompt]:
    """Every colour with every shape on ``grounds`` of the grounds, in turn."""
    names = list(GROUNDS)
    return [
        Prompt(caption(colour, shape, names[(row + column + turn) % len(names)]), colour, shape)
        for row, shape in enumerate(shapes)
        for column, colour in enumerate(colours)
        for turn in range(grounds)
    ]


def evaluation_prompts() -> tuple[list[Prompt], list[Prompt]]:
    """(taught, kept): 24 prompts with the new shape, the new colour or both, and 24 of the base world."""
    shown = [colour for colour in BASE_COLOURS if colour not in HELD_OUT_COLOURS]
    taught = [
        *prompts(shown, [NEW_SHAPE], grounds=2),
        *prompts(HELD_OUT_COLOURS, [NEW_SHAPE], grounds=3),
        *prompts([NEW_COLOUR], BASE_SHAPES, grounds=2),
        *prompts([NEW_COLOUR], [NEW_SHAPE], grounds=3),
    ]
    return taught, prompts(BASE_COLOURS, BASE_SHAPES, grounds=1)


def random_colour(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> tuple:
    hue = (rng.uniform(), rng.uniform(*saturation), rng.uniform(*value))
    return Image.new("HSV", (1, 1), tuple(round(255 * part) for part in hue)).convert("RGB").getpixel((0, 0))


def free_outline(rng: np.random.Generator) -> np.ndarray:
    """A random outline about the origin within the unit circle: ellipse, polygon, star or a turned cross."""
    kind, turn = rng.integers(4), rng.choice([0.0, rng.uniform(0, 2 * math.pi)])
    if kind == 0:
        outline = corners("circle")
    elif kind == 1:
        outline = star_corners(points=int(rng.integers(3, 8)), inner=1.0, turn=turn)[::2]
    elif kind == 2:
        outline = star_corners(points=int(rng.integers(4, 8)), inner=rng.uniform(0.35, 0.7), turn=turn)
    else:
        turned = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        outline = corners("cross") @ turned / math.sqrt(1 + CROSS_ARM**2)
    return outline * rng.uniform(0.6, 1.0, size=2)


def free_picture(rng: np.random.Generator, size: int = SIZE) -> Image.Image:
    """One or two random outlines in random strong colours on a random dull ground.

    A VAE trained on these can show what no caption has taught: it must be ready for whatever is fine-tuned later.
    """
    ground = random_colour(rng, (0.0, 0.8), (0.03, 0.5))
    layers = []
    for _ in range(rng.integers(1, 3)):
        saturation = (0.0, 0.2) if rng.uniform() < 0.15 else (0.6, 1.0)
        outline = free_outline(rng) * rng.uniform(0.15, 0.42) + rng.uniform(0.2, 0.8, size=2)
        layers.append((outline, random_colour(rng, saturation, (0.6, 1.0))))
    return paint(size, ground, layers)


def write_folder(path: str | Path, examples: Iterable[Example]) -> None:
    """Write NNNN.png with its caption NNNN.txt for every example, as a user's folder would have them.

    A caption is written before its picture, and each file whole: an interrupted folder never has a picture without one.
    """
    for index, item in enumerate(examples):
        write_text(Path(path) / f"{index:04d}.txt", item.caption + "\n")
        with replacing(Path(path) / f"{index:04d}.png") as file:
            item.picture.save(file, format="PNG")


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("folder", nargs="?", default="runs/world", help="where to write it (default: runs/world)")
    write_folder(parser.parse(arguments).folder, finetune_set(seed=0))


if __name__ == "__main__":
    run_door(main)
