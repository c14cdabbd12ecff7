"""Diffusers folders in and out."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from gm.errors import SuiteError, UsageError
from gm.models.architecture import TINY_SDXL
from gm.weights.convert import convert_file
from gm.weights.files import open_weights
from gm.weights.folder import ckpt_to_diffusers, diffusers_to_ckpt
from gm.weights.keys import expected_shapes
from gm.weights.merge import default_save_path, merge


@pytest.fixture
def tokenizer(tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    words = ["!", "a</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


@pytest.fixture
def ckpt(tmp_path, tiny_tensors, write_ckpt):
    return write_ckpt(tmp_path / "tiny.ckpt", tiny_tensors)


@pytest.fixture
def folder(tmp_path, ckpt, tokenizer):
    ckpt_to_diffusers(ckpt, tmp_path / "folder", tokenizer=tokenizer)
    return tmp_path / "folder"


def same(one, other, names=None) -> bool:
    """Whether all tensors are the same, or those of ``names``."""
    with open_weights(one) as first, open_weights(other) as second:
        if names is None:
            assert set(first.names()) == set(second.names())
            names = set(first.names()) - {"conditioner.embedders.1.model.logit_scale"}  # not in transformers
        return all(
            first.dtype(name) == second.dtype(name) and np.array_equal(first.read(name), second.read(name))
            for name in names
        )


def test_there_and_back_is_identical(tmp_path, ckpt, folder):
    diffusers_to_ckpt(folder, tmp_path / "back.ckpt")
    assert same(ckpt, tmp_path / "back.ckpt")


@pytest.mark.parametrize("family", ["refiner", "sd-1", "sd-2"])
def test_other_families_there_and_back(tmp_path, families, make_tensors, write_ckpt, family):
    expected = families[family]
    path = write_ckpt(tmp_path / "model.ckpt", make_tensors(expected_shapes(expected)))
    with open_weights(path) as weights:
        assert weights.architecture() == expected
    ckpt_to_diffusers(path, tmp_path / "folder")
    dropped = ()
    if family == "sd-2":  # its folders hold a text model without projection and the layer above the one it uses
        encoder = replace(expected.text_encoders[0], layers=1, layer="last", projection_dim=None)
        expected = replace(expected, text_encoders=(encoder,))
        dropped = ("text_projection", "logit_scale", "resblocks.1.")
    with open_weights(tmp_path / "folder") as weights, open_weights(path) as original:
        assert weights.architecture() == expected
        kept = {name for name in original.names() if not any(part in name for part in dropped)}
        assert set(weights.names()) == kept
    assert same(tmp_path / "folder", path, kept - {"conditioner.embedders.0.model.logit_scale"})
    assert (tmp_path / "folder/text_encoder_2").exists() == (family == "refiner")


@pytest.mark.parametrize(("family", "pads"), [("refiner", "!"), ("sd-1", "<|endoftext|>"), ("sd-2", "!")])
def test_tokenizers_pad_as_the_model_was_trained(tmp_path, families, make_tensors, write_ckpt, tokenizer, family, pads):
    path = write_ckpt(tmp_path / "model.ckpt", make_tensors(expected_shapes(families[family])))
    ckpt_to_diffusers(path, tmp_path / "folder", tokenizer=tokenizer)
    name = "tokenizer_2" if family == "refiner" else "tokenizer"
    assert [found.name for found in tmp_path.glob("folder/tokenizer*")] == [name]
    assert json.loads((tmp_path / "folder" / name / "tokenizer_config.json").read_text())["pad_token"] == pads


def test_a_folder_opens_like_a_file(ckpt, folder):
    with open_weights(folder) as weights:
        assert weights.architecture() == TINY_SDXL
        assert weights.layout == "diffusers"
    assert same(ckpt, folder)


def test_everything_a_pipeline_asks_for_is_there(folder):
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    for name, value in index.items():
        if isinstance(value, list):
            assert list((folder / name).glob("*.json")), name
    padding = [
        json.loads((folder / name / "tokenizer_config.json").read_text())["pad_token"]
        for name in ("tokenizer", "tokenizer_2")
    ]
    assert padding == ["<|endoftext|>", "!"]


def test_a_folder_can_lend_its_tokenizers(tmp_path, ckpt, folder):
    (folder / "tokenizer_2" / "merges.txt").write_text("#version: 0.2\na b\n")
    ckpt_to_diffusers(ckpt, tmp_path / "second", tokenizer=folder)
    assert (tmp_path / "second/tokenizer_2/merges.txt").read_text() == "#version: 0.2\na b\n"
    assert (tmp_path / "second/tokenizer/merges.txt").read_text() == "#version: 0.2\n"


def test_half_precision_on_request(tmp_path, ckpt):
    ckpt_to_diffusers(ckpt, tmp_path / "half", dtype="F16")
    with open_weights(tmp_path / "half") as weights:
        assert {weights.dtype(name) for name in weights.names()} == {"F16"}
        assert weights.read("conditioner.embedders.1.model.logit_scale") == np.float16(4.6052)


def test_a_unet_alone_is_a_folder_with_a_unet(tmp_path, tiny_tensors, write_ckpt):
    unet = {name: rest for name, rest in tiny_tensors.items() if name.startswith("model.")}
    path = write_ckpt(tmp_path / "unet.ckpt", unet)
    ckpt_to_diffusers(path, tmp_path / "out")
    assert not (tmp_path / "out/model_index.json").exists()
    assert same(path, tmp_path / "out")


def test_text_encoders_written_by_transformers_5_are_read(tmp_path, ckpt, folder, write_safetensors):
    """It drops ``text_model.`` from the names of the first encoder."""
    path = folder / "text_encoder/model.safetensors"
    from gm.weights.sources import TensorFile

    from_file = TensorFile(path)
    bare = {}
    with open_weights(ckpt) as weights:
        for name in from_file.entries:
            original = f"conditioner.embedders.0.transformer.{name}"
            bare[name.removeprefix("text_model.")] = (weights.shape(original), "F32", weights.read(original))
    from_file.close()
    write_safetensors(path, bare)
    assert same(ckpt, folder)


def test_shards_are_one_part(ckpt, folder, write_safetensors):
    whole = folder / "unet/diffusion_pytorch_model.safetensors"
    from safetensors.numpy import load_file

    tensors = {name: (value.shape, "F32", value) for name, value in load_file(whole).items()}
    names = list(tensors)
    shards = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, chosen in shards.items():
        write_safetensors(folder / "unet" / file, {name: tensors[name] for name in chosen})
    table = {name: file for file, chosen in shards.items() for name in chosen}
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    whole.unlink()
    assert same(ckpt, folder)
    (folder / "unet/two.safetensors").unlink()
    with pytest.raises(SuiteError, match=r"two.safetensors is missing, one of 2"):
        open_weights(folder)


def test_a_half_precision_variant_is_found(ckpt, folder):
    for path in folder.glob("*/*.safetensors"):
        path.rename(path.with_name(f"{path.stem}.fp16.safetensors"))
    assert same(ckpt, folder)


def test_a_folder_is_a_base_to_merge_into(tmp_path, folder, tiny_shapes, make_tensors, write_ckpt):
    name = "model.diffusion_model.out.2.bias"
    trained = write_ckpt(tmp_path / "trained.ckpt", make_tensors({name: tiny_shapes[name]}, seed=3))
    report = merge(folder, [trained])
    assert report.save_path == default_save_path(folder) == tmp_path / "folder_merged.ckpt"
    with open_weights(report.save_path) as merged, open_weights(trained) as new:
        np.testing.assert_array_equal(merged.read(name), new.read(name))


def test_a_folder_to_an_original_single_file(tmp_path, ckpt, folder):
    convert_file(folder, tmp_path / "single.safetensors", "safetensors")
    assert same(ckpt, tmp_path / "single.safetensors")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: shutil.rmtree(f / "vae"), "lacks the folder vae that its model_index.json names"),
        (lambda f: (f / "unet/diffusion_pytorch_model.safetensors").unlink(), "has no diffusion_pytorch_model"),
        (
            lambda f: (f / "unet/diffusion_pytorch_model.safetensors").rename(f / "unet/diffusion_pytorch_model.bin"),
            "only diffusion_pytorch_model.bin, a torch pickle",
        ),
        (lambda f: (f / "model_index.json").write_text("{"), "model_index.json is damaged"),
        (lambda f: (f / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"\x10" * 40), "header claims"),
        (
            lambda f: shutil.copy(f / "vae/diffusion_pytorch_model.safetensors", f / "unet"),
            "unet: .* has no place in a network of this family",
        ),
    ],
)
def test_a_spoilt_folder_is_one_line(folder, spoil, words):
    spoil(folder)
    with pytest.raises(SuiteError, match=words) as error:
        open_weights(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def test_any_other_folder_is_one_line(tmp_path):
    with pytest.raises(SuiteError, match="no diffusers folder"):
        open_weights(tmp_path)
    (tmp_path / "a.ckpt").write_bytes(b"")
    with pytest.raises(SuiteError, match="no diffusers folder"):
        diffusers_to_ckpt(tmp_path / "a.ckpt", tmp_path / "b.ckpt")


def test_an_existing_folder_is_not_written_over(tmp_path, ckpt, folder):
    before = sorted(path.stat().st_mtime_ns for path in folder.rglob("*"))
    with pytest.raises(UsageError, match="exists"):
        ckpt_to_diffusers(ckpt, folder)
    assert sorted(path.stat().st_mtime_ns for path in folder.rglob("*")) == before


def test_a_failure_leaves_no_folder(tmp_path, tiny_tensors, write_ckpt):
    tensors = dict(tiny_tensors)
    shape = tensors["first_stage_model.quant_conv.bias"][0]
    tensors["first_stage_model.quant_conv.bias"] = (shape, "F32", np.full(shape, np.nan, np.float32))
    path = write_ckpt(tmp_path / "nan.ckpt", tensors)
    with pytest.raises(SuiteError, match=r"quant_conv.bias has NaN"):
        ckpt_to_diffusers(path, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["nan.ckpt"]


def test_a_tokenizer_without_its_files_is_told_before_anything_is_written(tmp_path, ckpt):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"lacks vocab.json and merges.txt"):
        ckpt_to_diffusers(ckpt, tmp_path / "out", tokenizer=tmp_path / "empty")
    assert not (tmp_path / "out").exists()
