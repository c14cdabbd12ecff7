"""Pictures drawn during training are scored where a CLIP is named, and the log gets the figures."""

import json

import numpy as np
import pytest
from PIL import Image

from gm.config import Config
from gm.evaluation import preview
from gm.evaluation.clip_score import ClipScores
from gm.evaluation.preview import ScoredPreview
from gm.sampling.preview import Shown


class Scorer:
    """Gives the n-th picture a tenth of n."""

    def score(self, pictures, prompts):
        assert len(pictures) == len(prompts)
        return ClipScores(np.arange(1, len(pictures) + 1) / 10)


@pytest.fixture
def config(monkeypatch):
    shown = [Shown(f"both/{index}.png", f"prompt {index}", Image.new("RGB", (8, 8))) for index in range(3)]
    monkeypatch.setattr(preview, "Preview", lambda config, unet: lambda folder: shown)
    monkeypatch.setattr(preview.ClipScorer, "load", lambda path, tokenizer: Scorer())
    return Config()


def test_every_picture_is_scored_against_its_prompt(config, tmp_path):
    config.validation.clip_weight = "some-clip"
    found = ScoredPreview(config, None)(tmp_path)
    assert found["clip_score_mean"] == pytest.approx(20)
    assert (found["clip_cosine_min"], found["clip_cosine_max"]) == (0.1, 0.3)
    record = json.loads((tmp_path / "clip_score.json").read_text())
    assert record["clip"] == "some-clip"
    assert [(image["file"], image["prompt"]) for image in record["images"]] == [
        (f"both/{index}.png", f"prompt {index}") for index in range(3)
    ]


def test_without_a_clip_pictures_are_only_drawn(config, tmp_path):
    assert ScoredPreview(config, None)(tmp_path) == {}
    assert not (tmp_path / "clip_score.json").exists()
