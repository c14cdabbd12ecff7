"""A whole random CLIP for the tiny world's words, as the hub would have it, and pictures to score."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gm.models.architecture import CLIPArchitecture, TextEncoderArchitecture, VisionEncoderArchitecture

ROOT = Path(__file__).resolve().parents[2]
TINY_CLIP = CLIPArchitecture(
    TextEncoderArchitecture(vocab_size=627, width=64, layers=1, mlp_dim=64, projection_dim=16),
    VisionEncoderArchitecture(width=64, layers=1, mlp_dim=64, heads=2, patch_size=16, picture_size=32),
)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    from safetensors.numpy import save_file

    from gm.models.build import build_clip

    folder = tmp_path_factory.mktemp("clip")
    clip = build_clip(TINY_CLIP, seed=3)
    tensors = {parameter.name: parameter.asnumpy() for parameter in clip.get_parameters()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {"text_config": {"num_attention_heads": 1}, "vision_config": {"num_attention_heads": 2}}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(ROOT / "demo" / "tiny" / "tokenizer" / name, folder)
    return folder


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Three grey pictures with captions."""
    for index in range(3):
        path = tmp_path / "pictures" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((64, 64, 3), 60 * index, np.uint8)).save(path)
        path.with_suffix(".txt").write_text("a red circle")
    return tmp_path / "pictures"
