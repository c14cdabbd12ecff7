"""What the quickstart reports: verdicts and figures from pictures, and the pictures that show them."""

import json

import numpy as np
import pytest
from PIL import Image

from demo.tiny import report, world
from gm.errors import SuiteError

TAUGHT, KEPT = world.evaluation_prompts()


@pytest.fixture
def out(tmp_path):
    """A quickstart's folder: a base that draws red circles for whatever is new, and a tuned model that is right."""
    rng = np.random.default_rng(0)
    for when in ("before", "after"):
        folder, entries = tmp_path / when, []
        folder.mkdir()
        for index, prompt in enumerate([*TAUGHT, *KEPT]):
            new = when == "before" and index < len(TAUGHT)
            shape, colour = ("circle", "red") if new else (prompt.shape, prompt.colour)
            world.draw(shape, colour, prompt.text.split()[-1], rng).save(folder / f"{index}.png")
            entries.append({"prompt": prompt.text, "file": f"{index}.png"})
        (folder / "manifest.json").write_text(json.dumps({"images": entries}))
    (tmp_path / "finetune").mkdir()
    rows = [{"step": step, "loss": 1 / step} for step in range(1, 50)]
    (tmp_path / "finetune" / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return tmp_path


def test_figures(out):
    report.main([str(out)])
    verdicts = json.loads((out / "verdicts.json").read_text())
    figures = {key: value for key, value in verdicts.items() if key != "prompts"}
    assert figures == {"matched_before": 0.0, "matched_after": 1.0, "kept_before": 1.0, "kept_after": 1.0}
    first = verdicts["prompts"][0]
    assert (first["prompt"], first["part"]) == (TAUGHT[0].text, "taught")
    assert (first["before"]["shape"], first["before"]["colour"]) == ("circle", "red")
    assert [item["part"] for item in verdicts["prompts"]] == ["taught"] * len(TAUGHT) + ["kept"] * len(KEPT)


def test_pictures_are_drawn_the_same_each_time(out):
    drawn = []
    for _ in range(2):
        report.main([str(out)])
        drawn.append([(out / name).read_bytes() for name in ("grid.png", "loss.png")])
    assert drawn[0] == drawn[1]
    with Image.open(out / "grid.png") as grid:
        assert min(grid.size) > 1000


def test_held_out_are_the_combinations_fine_tuning_never_shows():
    shown = {(item.colour, item.shape) for item in world.finetune_set(seed=0)}
    for prompt in TAUGHT:
        assert report.is_held_out(prompt) == ((prompt.colour, prompt.shape) not in shown), prompt


def test_a_missing_picture_is_named(out):
    manifest = json.loads((out / "after" / "manifest.json").read_text())
    manifest["images"].pop()
    (out / "after" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SuiteError, match=KEPT[-1].text):
        report.main([str(out)])


def test_a_moving_average_starts_at_the_first_value_and_keeps_a_constant():
    assert report.smoothed([0.5] * 10) == pytest.approx([0.5] * 10)
    assert report.smoothed([3.0, 0.0])[0] == pytest.approx(3.0)
