"""Conversion changes the container and nothing else."""

import errno
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest

from gm.errors import SuiteError, UsageError
from gm.weights import convert
from gm.weights.convert import ckpt_to_safetensors, safetensors_to_ckpt
from gm.weights.dtypes import to_float32
from gm.weights.files import open_weights


def contents(path) -> dict:
    """Key -> (shape, tag, bytes), constants included."""
    with open_weights(path) as weights:
        names = weights.names(buffers=True)
        return {name: (weights.shape(name), weights.dtype(name), weights.read(name).tobytes()) for name in names}


@pytest.fixture
def source(tmp_path, mixed_tensors, write_safetensors):
    return write_safetensors(tmp_path / "source.safetensors", mixed_tensors)


def test_round_trip_is_identical_byte_for_byte(tmp_path, source):
    safetensors_to_ckpt(source, tmp_path / "a.ckpt")
    ckpt_to_safetensors(tmp_path / "a.ckpt", tmp_path / "b.safetensors")
    before = contents(source)
    assert {tag for _, tag, _ in before.values()} == {"F32", "F16", "BF16", "I64"}
    assert contents(tmp_path / "a.ckpt") == before
    assert contents(tmp_path / "b.safetensors") == before


def test_mindspore_reads_the_result(tmp_path, source):
    safetensors_to_ckpt(source, tmp_path / "a.ckpt")
    loaded = ms.load_checkpoint(str(tmp_path / "a.ckpt"))
    with open_weights(source) as weights:
        assert set(loaded) == set(weights.names(buffers=True))
        for name in weights.names():
            expected = to_float32(weights.read(name), weights.dtype(name))
            np.testing.assert_array_equal(loaded[name].float().asnumpy(), expected)


@pytest.mark.parametrize("tag", ["F32", "F16", "BF16"])
def test_one_format_throughout_on_request(tmp_path, source, tag):
    safetensors_to_ckpt(source, tmp_path / "a.ckpt", tag)
    with open_weights(source) as before, open_weights(tmp_path / "a.ckpt") as after:
        tolerance = {"F32": 0, "F16": 2**-10, "BF16": 2**-8}[tag]
        for name in before.names():
            assert after.dtype(name) == tag
            np.testing.assert_allclose(
                to_float32(after.read(name), tag),
                to_float32(before.read(name), before.dtype(name)),
                rtol=tolerance,
                atol=1e-7,
            )
        assert all(after.dtype(name) == "I64" for name in after.names(buffers=True) if name.endswith("position_ids"))


def test_mindone_names_come_out_original(tmp_path, tiny_tensors, write_ckpt):
    renamed = {}
    for name, rest in tiny_tensors.items():
        if ".in_layers.0." in name or "norm" in name:
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        renamed[name.replace("token_embedding.weight", "token_embedding.embedding_table")] = rest
    assert set(renamed) != set(tiny_tensors)
    ckpt_to_safetensors(write_ckpt(tmp_path / "mindone.ckpt", renamed), tmp_path / "a.safetensors")
    with open_weights(tmp_path / "a.safetensors") as weights:
        assert weights.layout == "original"
        assert set(weights.names()) == set(tiny_tensors)


def test_output_is_never_input(tmp_path, source):
    link = tmp_path / "link.ckpt"
    link.symlink_to(source)
    before = source.read_bytes()
    with pytest.raises(UsageError, match="same file"):
        safetensors_to_ckpt(source, link)
    assert source.read_bytes() == before


def test_the_ending_of_the_output_is_its_format(tmp_path, source):
    with pytest.raises(UsageError, match=r"must end in .ckpt"):
        safetensors_to_ckpt(source, tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"lora_unet_x.lora_down.weight": (4, 4), "lora_unet_x.lora_up.weight": (4, 4)}, "LoRA"),
        ({"what.ever": (2,)}, "not a checkpoint of this family"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path, make_tensors, write_safetensors, shapes, words):
    path = write_safetensors(tmp_path / "x.safetensors", make_tensors(shapes))
    with pytest.raises(SuiteError, match=words):
        safetensors_to_ckpt(path, tmp_path / "a.ckpt")
    assert not (tmp_path / "a.ckpt").exists()


@pytest.mark.parametrize("fault", ["missing", "misshapen"])
def test_a_file_that_lost_keys_is_refused(tmp_path, tiny_tensors, write_ckpt, fault):
    """A .ckpt cut between two of its records is still a .ckpt."""
    tensors, name = dict(tiny_tensors), "first_stage_model.post_quant_conv.bias"
    if fault == "missing":
        del tensors[name]
    else:
        tensors[name] = ((5,), "F32", np.zeros(5, np.float32))
    path = write_ckpt(tmp_path / "cut.ckpt", tensors)
    with pytest.raises(SuiteError, match=rf"is damaged, .* 1 of its .* keys \({name}\)"):
        ckpt_to_safetensors(path, tmp_path / "a.safetensors")
    assert [entry.name for entry in tmp_path.iterdir()] == ["cut.ckpt"]


def test_space_is_looked_for_before_anything_is_written(tmp_path, source, monkeypatch):
    monkeypatch.setattr(convert.shutil, "disk_usage", lambda _: SimpleNamespace(total=10**9, free=10**6))
    monkeypatch.setattr(convert, "replacing", None)
    with pytest.raises(SuiteError, match=r"no space left .* it needs 0.0\d GB and 0.00 GB are free"):
        safetensors_to_ckpt(source, tmp_path / "a.ckpt")


def test_nan_leaves_nothing_behind(tmp_path, mixed_tensors, write_safetensors):
    tensors = dict(mixed_tensors)
    name = "model.diffusion_model.out.2.weight"
    tensors[name] = (tensors[name][0], "F32", np.full(tensors[name][0], np.nan, np.float32))
    path = write_safetensors(tmp_path / "nan.safetensors", tensors)
    with pytest.raises(SuiteError, match=f"{name} has NaN"):
        safetensors_to_ckpt(path, tmp_path / "a.ckpt")
    assert [entry.name for entry in tmp_path.iterdir()] == ["nan.safetensors"]


def test_values_beyond_the_format_leave_nothing_behind(tmp_path, mixed_tensors, write_safetensors):
    tensors = dict(mixed_tensors)
    name = "model.diffusion_model.out.2.weight"
    tensors[name] = (tensors[name][0], "F32", np.full(tensors[name][0], 1e6, np.float32))
    path = write_safetensors(tmp_path / "big.safetensors", tensors)
    with pytest.raises(SuiteError, match=f"{name}: value 1e\\+06 does not fit float16"):
        safetensors_to_ckpt(path, tmp_path / "a.ckpt", "F16")
    assert not (tmp_path / "a.ckpt").exists()


def test_a_full_disk_leaves_the_old_file(tmp_path, source, monkeypatch):
    (tmp_path / "a.ckpt").write_bytes(b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(convert.CkptWriter, "add", full)
    with pytest.raises(OSError, match="No space"):
        safetensors_to_ckpt(source, tmp_path / "a.ckpt")
    assert (tmp_path / "a.ckpt").read_bytes() == b"old"
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.ckpt", "source.safetensors"}
