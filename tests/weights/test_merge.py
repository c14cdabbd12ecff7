"""A merge replaces what it is told to, reports it, and nothing else changes."""

import numpy as np
import pytest

from gm.errors import SuiteError, UsageError
from gm.weights.files import open_weights
from gm.weights.folder import ckpt_to_diffusers
from gm.weights.merge import default_save_path, merge

UNET = "model.diffusion_model."


@pytest.fixture
def base(tmp_path, tiny_tensors, write_ckpt):
    return write_ckpt(tmp_path / "base.ckpt", tiny_tensors)


@pytest.fixture
def unet(tmp_path, tiny_shapes, make_tensors, write_ckpt):
    shapes = {name: shape for name, shape in tiny_shapes.items() if name.startswith(UNET)}
    return write_ckpt(tmp_path / "unet.ckpt", make_tensors(shapes, seed=1))


def arrays(path) -> dict:
    with open_weights(path) as weights:
        return {name: weights.read(name) for name in weights.names(buffers=True)}


def test_the_unet_is_new_and_the_rest_is_old(tmp_path, base, unet):
    report = merge(base, [unet], tmp_path / "merged.ckpt")
    merged, old, new = arrays(tmp_path / "merged.ckpt"), arrays(base), arrays(unet)
    assert list(merged) == list(old)
    for name in merged:
        np.testing.assert_array_equal(merged[name], (new if name.startswith(UNET) else old)[name])
    assert (report.total, report.kept) == (len(old), len(old) - len(new))
    assert report.replacements[0].tensors == len(new)
    assert report.replacements[0].parts == (("UNet", len(new), len(new)),)


def test_the_later_of_two_wins(tmp_path, base, unet, make_tensors, write_ckpt):
    name = UNET + "out.2.bias"
    later = write_ckpt(tmp_path / "later.ckpt", make_tensors({name: (4,)}, seed=2))
    report = merge(base, [unet, later], tmp_path / "merged.ckpt")
    np.testing.assert_array_equal(arrays(tmp_path / "merged.ckpt")[name], arrays(later)[name])
    assert [replacement.tensors for replacement in report.replacements] == [len(arrays(unet)) - 1, 1]
    assert [replacement.overruled for replacement in report.replacements] == [1, 0]
    assert report.lines()[0].endswith("; 1 more come from a later file")


def test_the_bases_format_stays(tmp_path, tiny_shapes, make_tensors, write_safetensors, unet):
    base = write_safetensors(tmp_path / "half.safetensors", make_tensors(tiny_shapes, "F16"))
    report = merge(base, [unet], tmp_path / "merged.ckpt")
    with open_weights(tmp_path / "merged.ckpt") as merged:
        assert {merged.dtype(name) for name in merged.names()} == {"F16"}
    assert report.replacements[0].cast == report.replacements[0].tensors
    assert "cast to the base's format" in report.lines()[0]
    merge(base, [unet], tmp_path / "merged.ckpt", dtype="F32")
    with open_weights(tmp_path / "merged.ckpt") as merged:
        assert {merged.dtype(name) for name in merged.names()} == {"F32"}


def test_the_ending_names_the_format(tmp_path, base, unet):
    merge(base, [unet], tmp_path / "merged.safetensors")
    assert open_weights(tmp_path / "merged.safetensors").format == "safetensors"


def test_a_dry_run_reports_the_same_and_writes_nothing(tmp_path, base, unet):
    report = merge(base, [unet], tmp_path / "merged.ckpt", dry_run=True)
    assert not (tmp_path / "merged.ckpt").exists()
    assert merge(base, [unet], tmp_path / "merged.ckpt") == report


def test_a_dry_run_finds_broken_values(tmp_path, base, tiny_tensors, write_ckpt):
    name = UNET + "out.2.bias"
    shape = tiny_tensors[name][0]
    broken = write_ckpt(tmp_path / "broken.ckpt", {name: (shape, "F32", np.full(shape, np.inf, np.float32))})
    with pytest.raises(SuiteError, match=r"out.2.bias has NaN or infinite"):
        merge(base, [broken], tmp_path / "merged.ckpt", dry_run=True)


def test_a_folder_with_a_unet_alone_is_laid_over(tmp_path, base, unet):
    ckpt_to_diffusers(unet, tmp_path / "folder")
    merge(base, [tmp_path / "folder"], tmp_path / "merged.ckpt")
    new, merged = arrays(unet), arrays(tmp_path / "merged.ckpt")
    for name, value in new.items():
        np.testing.assert_array_equal(merged[name], value)


def test_the_result_lies_beside_the_base_by_default(base, unet):
    merge(base, [unet])
    assert default_save_path(base) == base.with_name("base_merged.ckpt")
    assert base.with_name("base_merged.ckpt").exists()


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({UNET + "out.2.bias": (4,), UNET + "new.bias": (4,)}, r"1 of 2 tensors have no place in the base .*new.bias"),
        ({UNET + "out.2.bias": (5,)}, r"1 of 1 tensors have another shape .*out.2.bias \(5,\) instead of \(4,\)"),
        ({"lora_unet_a.lora_up.weight": (4, 4)}, "LoRA"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, base, make_tensors, write_ckpt, shapes, words):
    additional = write_ckpt(tmp_path / "additional.ckpt", make_tensors(shapes))
    with pytest.raises(SuiteError, match=words) as error:
        merge(base, [additional], tmp_path / "merged.ckpt")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "merged.ckpt").exists()


def test_the_output_is_none_of_the_inputs(base, unet):
    for path in (base, unet):
        before = path.read_bytes()
        with pytest.raises(UsageError, match="same file"):
            merge(base, [unet], path)
        assert path.read_bytes() == before


def test_a_unet_alone_is_no_base_for_a_whole_model(tmp_path, base, unet):
    with pytest.raises(
        SuiteError, match=r"base.ckpt is sdxl-like with a UNet, an auto.*unet.ckpt is sdxl-like with a UNet: [0-9]+ of"
    ):
        merge(unet, [base], tmp_path / "merged.ckpt")
