"""What each picture of a folder is meant to show."""

import json

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gm.errors import SuiteError, UsageError
from gm.evaluation.clip_score import ClipScores
from gm.evaluation.pictures import prompted, table, write_scores


def prompts(folder, prompt=""):
    return [(one.name, one.prompt) for one in prompted(folder, prompt)]


def test_captions_are_read_as_training_reads_them_but_what_the_sampler_wrote_goes_first(pictures):
    info = PngInfo()
    info.add_itxt("prompt", "ein blaues Quadrat")
    Image.new("RGB", (8, 8)).save(pictures / "1.png", pnginfo=info)
    Image.new("RGB", (8, 8)).save(pictures / "contact_sheet.png")
    assert prompts(pictures) == [("0.png", "a red circle"), ("1.png", "ein blaues Quadrat"), ("2.png", "a red circle")]


def test_given_prompts_are_for_the_pictures_in_their_order(pictures, tmp_path):
    assert {text for _, text in prompts(pictures, "a cat")} == {"a cat"}
    lines = tmp_path / "prompts.txt"
    lines.write_text("one --d 3\n\n# no\ntwo\nthree\n")
    assert [text for _, text in prompts(pictures, str(lines))] == ["one", "two", "three"]
    Image.new("RGB", (8, 8)).save(pictures / "3.png")
    lines.write_text("one\ntwo\n")
    assert [text for _, text in prompts(pictures, str(lines))] == ["one", "one", "two", "two"]
    lines.write_text("one\ntwo\nthree\n")
    with pytest.raises(UsageError, match="3 prompts cannot be divided among the 4 pictures"):
        prompts(pictures, str(lines))


def test_a_picture_without_a_prompt_is_told(pictures, tmp_path):
    (pictures / "2.txt").unlink()
    with pytest.raises(SuiteError, match=r"1 of 3 pictures in .* have neither a prompt inside nor a caption \(2.png\)"):
        prompted(pictures)
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "empty" / "contact_sheet.png")
    with pytest.raises(SuiteError, match="but a contact sheet"):
        prompted(tmp_path / "empty")


def test_scores_are_written_with_their_pictures(tmp_path):
    scores = ClipScores(np.array([0.25, -0.5]))
    write_scores(tmp_path / "s.json", scores, ["a.png", "b.png"], ["one", "two"], "some-clip")
    record = json.loads((tmp_path / "s.json").read_text())
    assert record["clip"] == "some-clip"
    assert record["summary"] == scores.summary()
    assert record["images"][1] == {"file": "b.png", "prompt": "two", "cosine": -0.5, "score": 0.0}
    assert "  25.00   0.2500  a.png: one" in table(scores, ["a.png", "b.png"], ["one", "two"])
