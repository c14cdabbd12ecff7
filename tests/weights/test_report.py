"""``inspect_weight.py`` tells what a file is, and whether it is whole."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gm.weights.files import WeightFile, open_weights
from gm.weights.keys import expected_shapes
from gm.weights.report import check_values, report


@dataclass
class Hollow:
    """A tensor of which only the shape is asked."""

    shape: tuple
    dtype: str = "F16"


def inspect(path) -> tuple[str, bool]:
    with open_weights(path) as weights:
        lines, whole = report(weights)
    return "\n".join(lines), whole


def test_a_whole_model(tmp_path, mixed_tensors, write_safetensors):
    path = write_safetensors(tmp_path / "a.safetensors", mixed_tensors)
    text, whole = inspect(path)
    assert whole
    count = sum(array.size for name, (_, _, array) in mixed_tensors.items() if name.startswith("model."))
    names = sum(name.startswith("model.") for name in mixed_tensors)
    total = sum(array.size for name, (_, _, array) in mixed_tensors.items() if "position_ids" not in name)
    lines = text.splitlines()
    assert lines[0] == f"file           {path}"
    assert lines[1].startswith("format         safetensors, original names, ")
    assert lines[2].count("192 ") == 3
    assert "1 i64" in lines[2]
    assert lines[3:5] == [f"parameters     {total:,}", "architecture   sdxl-like: of SDXL's family, a size of its own"]
    assert f"UNet           {count:,} parameters in {names} tensors, bfloat16 and float16 and float32" in lines
    assert "               transformer blocks: down 0 | 1 | 1, middle 1, up 1 1 | 1 1 | 0 0" in lines
    assert "8x downsampling, scale factor 0.13025" in text
    assert "open_clip, 2 layers of width 64, 627 tokens, pooled to 64: 149,249 parameters" in text
    assert lines[-3:] == ["missing        nothing", "misshapen      nothing", "not used       nothing"]


@pytest.mark.parametrize(
    ("name", "unet", "told"),
    [
        ("sdxl-base", 2_567_463_684, ("sdxl-base: Stable Diffusion XL base", "OpenCLIP ViT-bigG", "(6 size numbers)")),
        ("sdxl-refiner", 2_259_526_660, ("sdxl-refiner: Stable Diffusion XL refiner", "(5 size numbers)")),
        ("ssd-1b", 1_331_334_404, ("ssd-1b: Segmind SSD-1B", "middle without attention, up 4 4 10 | 2 1 1 | 0 0 0")),
        ("vega", 745_225_604, ("vega: Segmind-Vega", "down 0 0 | 1 1 | 2 2")),
        ("sd-1", 859_520_964, ("sd-1: Stable Diffusion 1.x", "CLIP-L, 12 layers", "scale factor 0.18215")),
        (
            "sd-2",
            865_910_724,
            ("sd-2: Stable Diffusion 2.x", "OpenCLIP ViT-H, 24 layers", "channels 320-640-1280-1280"),
        ),
    ],
)
def test_the_released_models_are_named_and_counted(models, name, unet, told):
    """From shapes alone, at full size."""
    sources = {key: Hollow(shape) for key, shape in expected_shapes(models[name]).items()}
    weights = WeightFile(Path("a.ckpt"), sources, "original", [SimpleNamespace(format="ckpt")])
    lines, whole = report(weights)
    assert whole
    text = "\n".join(lines)
    assert f"UNet           {unet:,} parameters" in text
    assert "a size of its own" not in text
    for words in told:
        assert words in text


def test_mindone_names_are_told(tmp_path, tiny_tensors, write_ckpt):
    renamed = {name.replace("norm1.weight", "norm1.gamma"): rest for name, rest in tiny_tensors.items()}
    text, whole = inspect(write_ckpt(tmp_path / "a.ckpt", renamed))
    assert whole
    assert "ckpt, mindone names" in text


def test_what_is_missing_and_what_is_too_much(tmp_path, tiny_tensors, write_ckpt):
    tensors = dict(tiny_tensors)
    gone = "model.diffusion_model.input_blocks.1.0.emb_layers.1.bias"
    del tensors[gone]
    tensors["model_ema.decay"] = ((), "F32", np.float32(0.9).reshape(()))
    text, whole = inspect(write_ckpt(tmp_path / "a.ckpt", tensors))
    assert not whole
    assert f"missing        1: {gone}" in text
    assert "not used       1: model_ema.decay" in text


def test_a_part_says_which_parts_it_lacks(tmp_path, tiny_tensors, write_ckpt):
    unet = {name: rest for name, rest in tiny_tensors.items() if name.startswith("model.")}
    text, whole = inspect(write_ckpt(tmp_path / "a.ckpt", unet))
    assert whole
    assert "autoencoder    not in this file" in text
    assert "text encoders  not in this file" in text


def test_an_autoencoder_alone_is_of_any_family(tmp_path, tiny_tensors, write_ckpt):
    tensors = {name: rest for name, rest in tiny_tensors.items() if name.startswith("first_stage_model.")}
    text, whole = inspect(write_ckpt(tmp_path / "a.ckpt", tensors))
    assert whole
    assert "SDXL, SD 1.x and 2.x have the same" in text
    assert "scale factor" not in text


@pytest.mark.parametrize("keys", [["lora_unet_a.lora_up.weight"], ["some.thing"]])
def test_another_file_is_described(tmp_path, make_tensors, write_ckpt, keys):
    text, whole = inspect(write_ckpt(tmp_path / "a.ckpt", make_tensors(dict.fromkeys(keys, (2, 2)))))
    assert not whole
    assert ("LoRA" in text) == ("lora" in keys[0])


@pytest.mark.parametrize("tag", ["F64", "F32", "F16", "BF16"])
def test_bad_values_are_counted(tmp_path, make_tensors, write_ckpt, tag):
    tensors = make_tensors({"good": (100,), "bad": (100,)}, tag)
    bits = tensors["bad"][2]
    bits[3:6] = {"BF16": 0x7FC0}.get(tag, np.nan)
    bits[7] = {"BF16": 0xFF80}.get(tag, -np.inf)
    with open_weights(write_ckpt(tmp_path / "a.ckpt", tensors)) as weights:
        assert check_values(weights) == ["not finite     bad: 4 of 100 values"]
