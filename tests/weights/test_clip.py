"""CLIP folders of the hub: what their files say, and what is said of files that are no whole CLIP."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from gm.errors import SuiteError
from gm.models.architecture import CLIPArchitecture, TextEncoderArchitecture, VisionEncoderArchitecture
from gm.models.build import build_clip
from gm.weights.clip import open_clip_model

TINY = CLIPArchitecture(
    TextEncoderArchitecture(vocab_size=50, width=64, layers=1, mlp_dim=32, activation="gelu", projection_dim=16),
    VisionEncoderArchitecture(width=48, layers=2, mlp_dim=40, heads=3, patch_size=8, picture_size=24),
)
CONFIG = {
    "text_config": {"num_attention_heads": 4, "hidden_act": "gelu"},
    "text_config_dict": {"num_attention_heads": 1},  # as OpenAI's: it goes before the other one
    "vision_config": {"num_attention_heads": 3},
}


@pytest.fixture(scope="module")
def tensors():
    parameters = build_clip(TINY, seed=0).get_parameters()
    return {parameter.name: parameter.asnumpy() for parameter in parameters}


@pytest.fixture
def write(tmp_path, tensors):
    """A folder with these tensors changed, and this config.json."""

    def write(config=CONFIG, **changed):
        given = tensors | {name.replace("__", "."): value for name, value in changed.items()}
        given = {name: value for name, value in given.items() if value is not None}
        save_file(given, tmp_path / "model.safetensors", {"format": "pt"})
        if config is not None:
            (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        return tmp_path

    return write


def test_a_folder_and_the_file_in_it_are_the_same_model(write):
    buffers = {"text_model__embeddings__position_ids": np.arange(77)[None]}  # files of 2022 have them
    folder = write(**buffers)
    for path in (folder, folder / "model.safetensors"):
        architecture, weights = open_clip_model(path)
        with weights:
            assert architecture == TINY
            assert weights.shape("logit_scale") == ()
            assert "text_model.embeddings.position_ids" not in weights.names()


@pytest.mark.parametrize(
    ("config", "changed", "words"),
    [
        (CONFIG, {"visual_projection__weight": None}, None),  # told when the network is filled
        (
            CONFIG,
            {"vision_model__embeddings__patch_embedding__weight": None},
            "it has no vision_model.embeddings.patch",
        ),
        (CONFIG, {"text_projection__weight": None}, "no CLIP with a text and a picture tower"),
        (CONFIG, {"vision_model__embeddings__patch_embedding__weight": np.ones(3, np.float32)}, "are of no CLIP"),
        (None, {}, "config.json is missing"),
        ("{", {}, "config.json is damaged"),
        ({"vision_config": []}, {}, "heads are 64 wide"),
        ({"text_config": {"num_attention_heads": 1, "hidden_act": "relu"}}, {}, "the activation relu: known are"),
        ({"text_config": {"num_attention_heads": 2}}, {}, "64 wide with 2 heads"),
        ({"text_config": 3}, {}, "are of no CLIP"),
    ],
)
def test_what_is_no_whole_clip_is_told_in_one_line(write, config, changed, words):
    folder = write(config, **changed)
    if words is None:
        open_clip_model(folder)[1].close()
        return
    with pytest.raises(SuiteError, match=words) as caught:
        open_clip_model(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
