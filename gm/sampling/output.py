"""Pictures as files: names, settings inside the PNG, a contact sheet, a manifest. No clock: same input, same bytes."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from gm.errors import SuiteError
from gm.files import replacing, write_json
from gm.sampling.prompts import Wish

SLUG_LENGTH = 40
CONTACT_SHEET, MANIFEST = "contact_sheet.png", "manifest.json"
CELL, MARGIN, LINE = 256, 8, 14  # pixels of the contact sheet: a picture's longer side, gaps, a line of text
LABEL_LINES = 2
INK, PAPER = (30, 30, 30), (245, 245, 245)


def slug(prompt: str) -> str:
    """The prompt as part of a file name: words in lower case joined by ``-``, at most 40 characters."""
    words = re.sub(r"[\W_]+", "-", prompt.lower()).strip("-")
    return words[:SLUG_LENGTH].strip("-") or "picture"


def picture_name(index: int, wish: Wish) -> str:
    """``{index:03d}_seed{seed}_{slug}.png``: stable, and in the order of drawing."""
    return f"{index:03d}_seed{wish.request.seed}_{slug(wish.request.prompt)}.png"


def described(wish: Wish, common: dict[str, Any]) -> dict[str, Any]:
    """Everything a picture was drawn with; ``common`` is what all of a run share, such as the weights."""
    return {**asdict(wish.request), **asdict(wish.settings), **common}


def save_picture(path: Path, picture: Image.Image, wish: Wish, common: dict[str, Any]) -> None:
    """Write a PNG with text chunks ``prompt``, ``negative_prompt``, ``seed`` and ``settings`` (JSON, all of it)."""
    info = PngInfo()
    for name, value in asdict(wish.request).items():
        info.add_itxt(name, str(value))
    info.add_itxt("settings", json.dumps(described(wish, common), ensure_ascii=False, sort_keys=True))
    with replacing(path) as file:
        picture.save(file, format="PNG", pnginfo=info)


def read_settings(picture: Path | IO[bytes]) -> dict[str, Any]:
    """What ``save_picture`` wrote into a PNG: prompt, seed and everything else it was drawn with.

    Raises:
        SuiteError: no picture, or one without these settings.
    """
    try:
        with Image.open(picture) as opened:
            settings = json.loads(getattr(opened, "text", {}).get("settings", ""))
    except (UnidentifiedImageError, OSError, ValueError):
        settings = None
    if not isinstance(settings, dict) or "prompt" not in settings:
        name = getattr(picture, "name", picture)
        raise SuiteError(f"{name} has no settings inside: give a PNG that was drawn here, as it was saved")
    return settings


def save_manifest(folder: Path, names: Sequence[str], wishes: Sequence[Wish], common: dict[str, Any]) -> None:
    """List the run's pictures: ``images`` has ``file``, ``prompt``, ``seed`` and all settings of each, in order."""
    images = [{"file": name, **described(wish, common)} for name, wish in zip(names, wishes)]
    write_json(folder / MANIFEST, {"images": images})


def sheet_of(pictures: Sequence[Image.Image], wishes: Sequence[Wish]) -> Image.Image:
    """The contact sheet of a run: a row for each prompt, or a square where each has one picture."""
    cells = [(picture, f"{wish.request.seed}: {wish.request.prompt}") for picture, wish in zip(pictures, wishes)]
    rows = [
        [cell for _, cell in group]
        for _, group in groupby(zip(wishes, cells), lambda pair: (pair[0].request.prompt, pair[0].settings))
    ]
    columns = max(map(len, rows))
    if columns == 1:
        return contact_sheet(*zip(*cells), round(len(cells) ** 0.5))
    filled = [cell for row in rows for cell in row + [(None, "")] * (columns - len(row))]
    return contact_sheet(*zip(*filled), columns)


def contact_sheet(pictures: Sequence[Image.Image | None], labels: Sequence[str], columns: int) -> Image.Image:
    """All pictures at one glance, row by row, each with its label below; None leaves a place empty."""
    font = ImageFont.load_default(LINE - 3)
    cells = [_fitted(picture or Image.new("RGB", (1, 1), PAPER)) for picture in pictures]
    width = max(cell.width for cell in cells) + MARGIN
    height = max(cell.height for cell in cells) + LABEL_LINES * LINE + MARGIN
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (cell, label) in enumerate(zip(cells, labels)):
        left, top = MARGIN + index % columns * width, MARGIN + index // columns * height
        sheet.paste(cell, (left, top))
        for line, text in enumerate(_wrapped(label, font, width - MARGIN)):
            draw.text((left, top + cell.height + line * LINE), text, INK, font)
    return sheet


def _fitted(picture: Image.Image) -> Image.Image:
    """Shrunk to ``CELL``, or enlarged by a whole number so that small pictures keep their pixels."""
    longer = max(picture.size)
    if longer > CELL:
        return picture.resize([max(1, round(side * CELL / longer)) for side in picture.size], Image.Resampling.LANCZOS)
    factor = max(1, CELL // 2 // longer)
    return picture.resize([side * factor for side in picture.size], Image.Resampling.NEAREST)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    lines, rest = [], text.split()
    while rest and len(lines) < LABEL_LINES:
        count = len(rest)
        while count > 1 and font.getlength(" ".join(rest[:count])) > width:
            count -= 1
        lines.append(" ".join(rest[:count]))
        rest = rest[count:]
    if rest:
        lines[-1] += " ..."
    for index, line in enumerate(lines):
        while len(line) > 1 and font.getlength(line) > width:
            line = line[:-1]
        lines[index] = line
    return lines
