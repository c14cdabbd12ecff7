"""``inspect_weight.py`` tells what a file is, and whether it is whole."""

import numpy as np
import pytest

from gm.weights.files import open_weights
from gm.weights.report import check_values, report


def inspect(path) -> tuple[str, bool]:
    with open_weights(path) as weights:
        lines, whole = report(weights)
    return "\n".join(lines), whole


def test_a_whole_model(tmp_path, mixed_tensors, write_safetensors):
    path = write_safetensors(tmp_path / "a.safetensors", mixed_tensors)
    text, whole = inspect(path)
    assert whole
    assert f"file         {path} (safetensors, original names)" in text
    assert "architecture sdxl-like" in text
    count = sum(array.size for name, (_, _, array) in mixed_tensors.items() if name.startswith("model."))
    assert f"unet         {count:,} parameters, bfloat16 and float16 and float32" in text
    assert "transformer blocks: down 0 | 1 | 1, middle 1, up 1 1 | 1 1 | 0 0" in text
    assert "8x downsampling, scale factor 0.13025" in text
    assert "open_clip: 2 layers of width 64" in text
    assert "missing      nothing" in text
    assert "not used     nothing" in text


def test_what_is_missing_and_what_is_too_much(tmp_path, tiny_tensors, write_ckpt):
    tensors = dict(tiny_tensors)
    gone = "model.diffusion_model.input_blocks.1.0.emb_layers.1.bias"
    del tensors[gone]
    tensors["model_ema.decay"] = ((), "F32", np.float32(0.9).reshape(()))
    text, whole = inspect(write_ckpt(tmp_path / "a.ckpt", tensors))
    assert not whole
    assert f"missing      1: {gone}" in text
    assert "not used     1: model_ema.decay" in text


def test_a_part_says_which_parts_it_lacks(tmp_path, tiny_tensors, write_ckpt):
    unet = {name: rest for name, rest in tiny_tensors.items() if name.startswith("model.")}
    text, whole = inspect(write_ckpt(tmp_path / "a.ckpt", unet))
    assert whole
    assert "autoencoder  not in this file" in text
    assert "text towers  not in this file" in text


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
        assert check_values(weights) == ["not finite   bad: 4 of 100 values"]
