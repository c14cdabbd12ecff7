"""Judge the quickstart's pictures and draw them: verdicts.json, grid.png and loss.png in its folder.

python -m demo.tiny.report runs/quickstart
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from demo.tiny import world
from demo.tiny.judge import judge
from gm.errors import SuiteError, UsageError, run_door
from gm.files import replacing, write_json

COLUMNS = 8
SIDE = 152  # of a picture in the grid, in pixels: sizes are twice those of the page, for sharp text
GAP, CARD_GAP, MARGIN = 8, 28, 48
LABEL, HEADING, TITLE = 21, 30, 42  # font sizes
INK, FAINT, PAPER = (31, 35, 40), (101, 109, 118), (255, 255, 255)
RIGHT, WRONG = (26, 127, 55), (207, 34, 46)


class Item(NamedTuple):
    """A prompt, its two pictures, and whether they show what it says."""

    prompt: world.Prompt
    part: str  # taught | kept
    held_out: bool
    pictures: dict[str, Image.Image]  # before, after
    verdicts: dict[str, dict]

    def record(self) -> dict:
        return {
            "prompt": self.prompt.text,
            "part": self.part,
            "held_out": self.held_out,
            **self.verdicts,
        }


def is_held_out(prompt: world.Prompt) -> bool:
    """Whether fine-tuning never showed this colour and shape together."""
    if prompt.shape == world.NEW_SHAPE:
        return prompt.colour in (*world.HELD_OUT_COLOURS, world.NEW_COLOUR)
    return prompt.colour == world.NEW_COLOUR and prompt.shape in world.HELD_OUT_SHAPES


def read_pictures(folder: Path, prompts: Sequence[world.Prompt]) -> list[tuple[str, Image.Image]]:
    """(name, picture) for each prompt, by the manifest that the sampling command leaves.

    Raises:
        SuiteError: a prompt has no picture.
    """
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    files = {entry["prompt"]: entry["file"] for entry in manifest["images"]}
    lacking = [prompt.text for prompt in prompts if prompt.text not in files]
    if lacking:
        raise SuiteError(f"{folder} has no picture of {lacking[0]!r}: sample all prompts into it first")
    found = []
    for prompt in prompts:
        with Image.open(folder / files[prompt.text]) as picture:
            found.append((files[prompt.text], picture.convert("RGB")))
    return found


def judged(out: Path) -> list[Item]:
    """Every prompt with its pictures and verdicts, in the order of the prompts file."""
    taught, kept = world.evaluation_prompts()
    prompts = [*taught, *kept]
    pictures = {when: read_pictures(out / when, prompts) for when in ("before", "after")}
    items = []
    for index, prompt in enumerate(prompts):
        verdicts = {}
        for when, found in pictures.items():
            name, picture = found[index]
            verdict = judge(picture)
            verdicts[when] = {
                "file": f"{when}/{name}",
                "colour": verdict.colour,
                "shape": verdict.shape,
                "matched": (verdict.colour, verdict.shape) == (prompt.colour, prompt.shape),
            }
        part = "taught" if index < len(taught) else "kept"
        both = {when: found[index][1] for when, found in pictures.items()}
        items.append(Item(prompt, part, is_held_out(prompt), both, verdicts))
    return items


def share(items: Iterable[Item], when: str) -> float:
    """The part of the pictures that show what their prompt says, 0 to 1."""
    matched = [item.verdicts[when]["matched"] for item in items]
    return round(sum(matched) / len(matched), 4)


def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def draw_badge(pen: ImageDraw.ImageDraw, x: float, y: float, right: bool, radius: float = 15) -> None:
    """A tick on green or a cross on red in a circle about (x, y)."""
    pen.ellipse((x - radius - 3, y - radius - 3, x + radius + 3, y + radius + 3), fill=PAPER)
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=RIGHT if right else WRONG)
    part = radius * 0.42
    if right:
        pen.line([(x - part, y), (x - part / 4, y + part * 0.8), (x + part, y - part * 0.8)], PAPER, 4, "curve")
    else:
        pen.line([(x - part, y - part), (x + part, y + part)], PAPER, 4)
        pen.line([(x - part, y + part), (x + part, y - part)], PAPER, 4)


def draw_card(page: Image.Image, left: int, top: int, item: Item) -> None:
    """A prompt's two pictures side by side under its words."""
    pen = ImageDraw.Draw(page)
    words = item.prompt.text.removeprefix("a ")
    pen.text((left + SIDE + GAP / 2, top + LABEL / 2), words, INK, font(LABEL), anchor="mm")
    for column, (when, picture) in enumerate(item.pictures.items()):
        x, y = left + column * (SIDE + GAP), top + LABEL + 12
        page.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, y))
        draw_badge(pen, x + SIDE - 22, y + SIDE - 22, item.verdicts[when]["matched"])


def draw_grid(items: Sequence[Item]) -> Image.Image:
    """All prompts in three sections, each prompt before and after fine-tuning."""
    taught = [item for item in items if item.part == "taught"]
    sections = [
        ("Taught by fine-tuning", [item for item in taught if not item.held_out]),
        ("Never shown together while fine-tuning", [item for item in taught if item.held_out]),
        ("Known before, and kept", [item for item in items if item.part == "kept"]),
    ]
    card_width, card_height = 2 * SIDE + GAP, SIDE + LABEL + 12
    heading_height, title_height = HEADING + 36, TITLE + LABEL + 48
    rows = sum(-(-len(part) // COLUMNS) for _, part in sections)
    width = 2 * MARGIN + COLUMNS * (card_width + CARD_GAP) - CARD_GAP
    height = 2 * MARGIN + title_height + len(sections) * (heading_height + 12) + rows * (card_height + CARD_GAP)
    page = Image.new("RGB", (width, height - CARD_GAP), PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, MARGIN), "Tiny SDXL before and after fine-tuning", INK, font(TITLE, bold=True))
    legend = (
        f"New shape: {world.NEW_SHAPE}. New colour: {world.NEW_COLOUR}. Each pair has the same prompt and seed: "
        "left before, right after."
    )
    pen.text((MARGIN, MARGIN + TITLE + 16), legend, FAINT, font(LABEL))
    top = MARGIN + title_height
    for title, part in sections:
        pen.text((MARGIN, top), title, INK, font(HEADING, bold=True))
        shift = MARGIN + pen.textlength(title, font(HEADING, bold=True)) + 24
        counts = [sum(item.verdicts[when]["matched"] for item in part) for when in ("before", "after")]
        pen.text(
            (shift, top + HEADING - LABEL),
            f"right before: {counts[0]} of {len(part)}, after: {counts[1]} of {len(part)}",
            FAINT,
            font(LABEL),
        )
        top += heading_height
        for index, item in enumerate(part):
            row, column = divmod(index, COLUMNS)
            draw_card(page, MARGIN + column * (card_width + CARD_GAP), top + row * (card_height + CARD_GAP), item)
        top += -(-len(part) // COLUMNS) * (card_height + CARD_GAP) + 12
    return page


def smoothed(losses: Sequence[float], decay: float = 0.95) -> list[float]:
    """Exponential moving average without the bias towards its start (Kingma & Ba 2014, section 3)."""
    average, found = 0.0, []
    for step, loss in enumerate(losses, 1):
        average = decay * average + (1 - decay) * loss
        found.append(average / (1 - decay**step))
    return found


def draw_loss(metrics: Path, path: Path) -> None:
    """The loss of every step of metrics.jsonl, and its moving average."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines() if line.strip()]
    rows = [row for row in rows if "loss" in row]
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    axes.plot(steps, losses, color="#9ec5f4", linewidth=0.8, label="each step")
    axes.plot(steps, smoothed(losses), color="#0550ae", linewidth=1.8, label="moving average")
    axes.set(xlabel="step", ylabel="loss", title="Fine-tuning the tiny SDXL", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.legend(frameon=False)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
    pyplot.close(figure)


def main(arguments: list[str]) -> None:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UsageError("name the quickstart's folder: python -m demo.tiny.report runs/quickstart")
    out = Path(arguments[0])
    items = judged(out)
    taught = [item for item in items if item.part == "taught"]
    kept = [item for item in items if item.part == "kept"]
    draw_loss(out / "finetune" / "metrics.jsonl", out / "loss.png")
    with replacing(out / "grid.png") as file:
        draw_grid(items).save(file, format="PNG", optimize=True)
    write_json(
        out / "verdicts.json",
        {
            "prompts": [item.record() for item in items],
            "matched_before": share(taught, "before"),
            "matched_after": share(taught, "after"),
            "kept_before": share(kept, "before"),
            "kept_after": share(kept, "after"),
        },
    )
    print(f"judged {2 * len(items)} pictures")


if __name__ == "__main__":
    run_door(main)
