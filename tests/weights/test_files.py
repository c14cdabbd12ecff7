"""Any weight file opens as original keys, or says in one line why not."""

import json

import numpy as np
import pytest
from safetensors import safe_open

from gm.errors import SuiteError
from gm.models.architecture import TINY_SDXL
from gm.weights.files import open_weights
from gm.weights.safetensors_file import SafetensorsWriter


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_safetensors_and_ckpt_read_alike(tmp_path, make_tensors, write_safetensors, write_ckpt, dtype):
    tensors = make_tensors({"model.a.weight": (5, 3), "model.b.bias": (7,), "scale": ()}, dtype)
    for path in write_safetensors(tmp_path / "a.safetensors", tensors), write_ckpt(tmp_path / "a.ckpt", tensors):
        with open_weights(path) as weights:
            assert set(weights.names()) == set(tensors)
            for name, (shape, tag, array) in tensors.items():
                assert (weights.shape(name), weights.dtype(name)) == (shape, tag)
                np.testing.assert_array_equal(weights.read(name), array)
                assert weights.read(name).dtype == array.dtype
                streamed = np.concatenate([chunk.copy() for chunk in weights.stream(name)])
                np.testing.assert_array_equal(streamed, array.reshape(-1))


def test_chunks_join_to_the_tensor(tmp_path, monkeypatch, make_tensors, write_ckpt):
    monkeypatch.setattr("gm.weights.sources.CHUNK_BYTES", 64)
    tensors = make_tensors({"a": (37, 3)})
    with open_weights(write_ckpt(tmp_path / "a.ckpt", tensors)) as weights:
        chunks = [chunk.copy() for chunk in weights.stream("a")]
        assert len(chunks) > 5
        assert all(chunk.nbytes <= 64 for chunk in chunks)
        np.testing.assert_array_equal(np.concatenate(chunks), tensors["a"][2].reshape(-1))


def test_the_library_reads_what_our_writer_writes(tmp_path, make_tensors):
    tensors = (
        make_tensors({"a": (3, 2), "s": ()}, "F16") | make_tensors({"b": (5,)}) | make_tensors({"c": (2,)}, "BF16")
    )
    path = tmp_path / "ours.safetensors"
    with open(path, "wb") as file:
        writer = SafetensorsWriter(file, [(name, shape, tag) for name, (shape, tag, _) in tensors.items()])
        for name in writer.names:
            shape, tag, array = tensors[name]
            writer.add(name, shape, tag, [array])
    assert writer.names[0] == "b"  # wider types first, so that each is aligned
    with safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        for name in ("a", "s", "b"):
            np.testing.assert_array_equal(file.get_tensor(name), tensors[name][2])
        assert file.get_slice("c").get_dtype() == "BF16"


def test_mindone_names_are_original_keys(tmp_path, make_tensors, write_ckpt):
    clip, unet = "conditioner.embedders.0.transformer.text_model.embeddings.", "model.diffusion_model."
    theirs = {
        f"{unet}input_blocks.1.0.in_layers.0.gamma": f"{unet}input_blocks.1.0.in_layers.0.weight",
        f"{unet}input_blocks.1.0.in_layers.0.beta": f"{unet}input_blocks.1.0.in_layers.0.bias",
        f"{unet}out.2.weight": f"{unet}out.2.weight",
        f"{clip}position_embedding.embedding_table": f"{clip}position_embedding.weight",
        # in one of MindONE's own key lists
        "conditioner.embedders.1.model.token_embedding..embedding_table": f"{clip}token_embedding.weight",
        "conditioner.embedders.1.model.token_embedding.embedding_table": "conditioner.embedders.1.model."
        "token_embedding.weight",
    }
    path = write_ckpt(tmp_path / "mindone.ckpt", make_tensors(dict.fromkeys(theirs, (2,))))
    with open_weights(path) as weights:
        assert weights.names() == list(theirs.values())
        assert weights.layout == "mindone"


def test_two_names_for_one_key_are_refused(tmp_path, make_tensors, write_ckpt):
    path = write_ckpt(tmp_path / "both.ckpt", make_tensors({"x.gamma": (2,), "x.weight": (2,)}))
    with pytest.raises(SuiteError, match=r"x.weight occurs twice"):
        open_weights(path)


def test_position_ids_are_not_among_the_names(tmp_path, make_tensors, write_safetensors):
    tensors = make_tensors({"a": (2,)}) | {"e.position_ids": ((1, 3), "I64", np.arange(3)[None])}
    with open_weights(write_safetensors(tmp_path / "a.safetensors", tensors)) as weights:
        assert weights.names() == ["a"]
        assert sorted(weights.names(buffers=True)) == ["a", "e.position_ids"]


def test_the_contents_decide_not_the_name(tmp_path, make_tensors, write_safetensors, write_ckpt):
    tensors = make_tensors({"a": (2,)})
    write_safetensors(tmp_path / "a.ckpt", tensors)
    write_ckpt(tmp_path / "b.safetensors", tensors)
    assert open_weights(tmp_path / "a.ckpt").format == "safetensors"
    assert open_weights(tmp_path / "b.safetensors").format == "ckpt"


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_nan_is_told_with_its_name(tmp_path, make_tensors, write_safetensors, write_ckpt, suffix):
    tensors = make_tensors({"good": (2,), "bad.weight": (3,)}, "BF16")
    tensors["bad.weight"][2][1] = 0x7FC0
    write = write_ckpt if suffix == ".ckpt" else write_safetensors
    with open_weights(write(tmp_path / f"nan{suffix}", tensors)) as weights:
        list(weights.stream("good"))
        with pytest.raises(SuiteError, match=r"bad.weight has NaN"):
            list(weights.stream("bad.weight"))


def test_the_tiny_model_is_recognised(tmp_path, tiny_tensors, write_safetensors):
    with open_weights(write_safetensors(tmp_path / "tiny.safetensors", tiny_tensors)) as weights:
        assert weights.architecture() == TINY_SDXL
        assert weights.describe() == "sdxl-like with a UNet, an autoencoder, 2 text encoders"


def test_a_truncated_safetensors_is_told_at_every_length(tmp_path, make_tensors, write_safetensors):
    whole = write_safetensors(tmp_path / "whole.safetensors", make_tensors({"a": (30,), "b": (2, 2)})).read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        with pytest.raises(SuiteError, match=r"again") as error:
            open_weights(path)
        assert one_line(error).startswith(str(path))


def header(**changes) -> bytes:
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes
    text = json.dumps({"a": tensor}).encode()
    return len(text).to_bytes(8, "little") + text + b"\0" * 8


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ((10**15).to_bytes(8, "little") + b'{"a"', "claims 1000000000000000 bytes"),
        ((12).to_bytes(8, "little") + b'{"a": [1, 2}' + b"\0" * 8, "header is damaged"),
        ((9).to_bytes(8, "little") + b'{"a": 12}' + b"\0" * 8, "header is damaged"),
        (header(shape=[3]), "damaged"),
        (header(data_offsets=[0, 800]), "truncated, 79 of 871 bytes"),
        (header(dtype="F8_E4M3", data_offsets=[0, 2])[:-6], "F8_E4M3, which is not supported"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        (b"<!DOCTYPE html><html></html>" + b" " * 80, "web page"),
        (b"PK\x03\x04" + b"\0" * 80, "torch pickle"),
        (b"\x80\x02}q\x00" + b"\0" * 80, "torch pickle"),
        (b"", "empty"),
        (b"some text that is nothing at all, but long enough to be a checkpoint file", "not a MindSpore .ckpt"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_bad_files_are_one_line(tmp_path, content, words, suffix):
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(SuiteError, match=words) as error:
        open_weights(path)
    assert one_line(error).startswith(str(path))


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(SuiteError, match="no such weight file"):
        open_weights(tmp_path / "none.ckpt")


def test_a_torch_file_is_refused_without_opening_it(tmp_path):
    torch = pytest.importorskip("torch")
    for name, zipped in (("new.ckpt", True), ("old.ckpt", False)):
        torch.save({"a": torch.ones(3)}, tmp_path / name, _use_new_zipfile_serialization=zipped)
        with pytest.raises(SuiteError, match="torch pickle"):
            open_weights(tmp_path / name)
