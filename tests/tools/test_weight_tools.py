"""The doors of the weight tools: the documented flags, one line for an error, exit codes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gm.models.architecture import TINY_SDXL
from gm.weights.files import open_weights
from gm.weights.keys import expected_shapes

ROOT = Path(__file__).resolve().parents[2]
CONVERT = "tools/model_conversion/convert_weight.py"
INSPECT = "tools/model_conversion/inspect_weight.py"
MERGE = "tools/weight_merge/merge_weight.py"


def test_there_and_back(run, tmp_path, model):
    single, back = tmp_path / "model.safetensors", tmp_path / "back.ckpt"
    code, out, err = run(CONVERT, "--task", "ms_to_st", "--weight_ms", model, "--weight_safetensors", single)
    assert (code, out, err) == (0, f"wrote {single}\n", "")
    code, *_ = run(CONVERT, "--task=st_to_ms", f"--weight_safetensors={single}", f"--weight_ms={back}")
    assert code == 0
    assert back.read_bytes() == model.read_bytes()


def test_a_number_format(run, tmp_path, model):
    single = tmp_path / "half.safetensors"
    run(CONVERT, "--task", "ms_to_st", "--weight_ms", model, "--weight_safetensors", single, "--dtype", "bf16")
    with open_weights(single) as weights:
        assert {weights.dtype(name) for name in weights.names()} == {"BF16"}


def test_merge_reports_and_writes(run, tmp_path, model, unet):
    target = tmp_path / "merged.ckpt"
    flags = ("--base_weight", model, "--additional_weights", unet, "--save_path", target)
    code, out, _ = run(MERGE, *flags, "--dry_run")
    assert code == 0
    total, new = len(expected_shapes(TINY_SDXL)), len(open_weights(unet).names())
    assert out == (
        f"{unet}: replaces {new} of {total} tensors (UNet {new} of {new})\n"
        f"kept from the base: {total - new} of {total} tensors\n"
        f"would write {target}\n"
    )
    assert not target.exists()
    code, out, _ = run(MERGE, *flags)
    assert code == 0
    assert f"wrote {target}" in out
    with open_weights(target) as weights:
        assert (weights.read("model.diffusion_model.out.2.weight") == 1).all()


@pytest.mark.parametrize(
    ("tool", "arguments", "code", "words"),
    [
        (CONVERT, [], 2, "--task"),
        (CONVERT, ["--task", "st_to_pt"], 2, "invalid choice: 'st_to_pt'"),
        (CONVERT, ["--task", "st_to_ms", "--weight_ms", "a.ckpt"], 2, "needs --weight_safetensors"),
        (
            CONVERT,
            ["--task", "st_to_ms", "--weight_m", "a.ckpt"],
            2,
            "unknown flag --weight_m: did you mean --weight_ms?",
        ),
        (
            CONVERT,
            ["--task", "ms_to_st", "--weight_ms", "no.ckpt", "--weight_safetensors", "a.safetensors"],
            1,
            "no such",
        ),
        (
            CONVERT,
            ["--task", "ms_to_st", "--weight_ms", "model.ckpt", "--weight_safetensors", "a.bin"],
            2,
            "must end in",
        ),
        (
            CONVERT,
            ["--task", "ms_to_st", "--weight_ms", "cut.ckpt", "--weight_safetensors", "a.safetensors"],
            1,
            "truncated",
        ),
        (
            CONVERT,
            ["--task", "st_to_ms", "--weight_safetensors", "a", "--weight_ms", "b", "--tokenizer", "t"],
            2,
            "goes with",
        ),
        (MERGE, ["--base_weight", "model.ckpt"], 2, "--additional_weights"),
        (MERGE, ["--base_weights", "model.ckpt"], 2, "did you mean --base_weight?"),
        (MERGE, ["--base_weight", "model.ckpt", "--additional_weights", "cut.ckpt"], 1, "truncated"),
        (
            MERGE,
            ["--base_weight", "model.ckpt", "--additional_weights", "unet.ckpt", "--save_path", "model.ckpt"],
            2,
            "same",
        ),
    ],
)
def test_errors_are_one_line_and_an_exit_code(run, tmp_path, model, unet, monkeypatch, tool, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    Path("cut.ckpt").write_bytes(model.read_bytes()[:100_000])
    before = {path.name for path in tmp_path.iterdir()}
    left, _, err = run(tool, *arguments)
    assert left == code
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert words in err
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("tool", [CONVERT, MERGE, INSPECT])
def test_a_tool_starts_from_any_folder(tmp_path, tool):
    done = subprocess.run([sys.executable, ROOT / tool, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    assert "--" in done.stdout
    assert "python tools/" in done.stdout


def test_tools_that_only_move_bytes_do_not_wait_for_mindspore():
    rooms = "gm.weights.convert, gm.weights.merge, gm.weights.folder, gm.weights.report"
    code = f"import sys, {rooms}; sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_inspection_says_what_a_file_is(run, model, unet, tmp_path):
    code, out, err = run(INSPECT, model)
    assert (code, err) == (0, "")
    assert "architecture   sdxl-like" in out
    code, out, _ = run(INSPECT, unet, "--values")
    assert code == 0
    assert "all finite" in out
    code, _, err = run(INSPECT, tmp_path / "none")
    assert (code, err) == (1, f"error: no such weight file: {tmp_path / 'none'}\n")


def test_a_diffusers_folder_there_and_back(run, tmp_path, model):
    folder, back = tmp_path / "folder", tmp_path / "back.ckpt"
    assert run(CONVERT, "--task", "ms_to_diffusers", "--weight_ms", model, "--weight_diffusers", folder)[0] == 0
    assert run(CONVERT, "--task", "diffusers_to_ms", "--weight_diffusers", folder, "--weight_ms", back)[0] == 0
    with open_weights(model) as before, open_weights(back) as after:
        name = "conditioner.embedders.1.model.text_projection"
        np.testing.assert_array_equal(before.read(name), after.read(name))
