"""What goes wrong with files: one line that names the file, an exit code, and nothing half-written, from every tool."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gm.models.architecture import TINY_SDXL
from gm.weights.ckpt import save_ckpt
from gm.weights.convert import ckpt_to_safetensors
from gm.weights.folder import ckpt_to_diffusers
from gm.weights.keys import expected_shapes

CONVERT = "tools/model_conversion/convert_weight.py"
INSPECT = "tools/model_conversion/inspect_weight.py"
MERGE = "tools/weight_merge/merge_weight.py"
REFINER = replace(
    TINY_SDXL,
    unet=replace(TINY_SDXL.unet, context_dim=64, vector_dim=64 + 5 * 256),
    text_encoders=TINY_SDXL.text_encoders[1:],
    size_numbers=5,
)
UNET = "model.diffusion_model."


def write(path: Path, shapes: dict, value: float = 0.0) -> Path:
    save_ckpt(path, ((name, shape, "F32", np.full(shape, value, np.float32)) for name, shape in shapes.items()))
    return path


@pytest.fixture
def files(tmp_path, model, monkeypatch):
    """Broken files of every kind beside whole ones, in the current folder."""
    monkeypatch.chdir(tmp_path)
    ckpt_to_safetensors(model, "model.safetensors")
    ckpt_to_diffusers(model, "folder")
    whole = Path("model.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    Path("cut.safetensors").write_bytes(whole[: len(whole) // 2])
    Path("cut_in_its_header.safetensors").write_bytes(whole[:1000])
    Path("long_header.safetensors").write_bytes((3 * len(whole)).to_bytes(8, "little") + whole[8:])
    Path("short_header.safetensors").write_bytes((length - 10).to_bytes(8, "little") + whole[8:])
    Path("cut.ckpt").write_bytes(model.read_bytes()[:100_000])
    Path("torch.ckpt").write_bytes(b"PK\x03\x04" + b"\0" * 100)
    Path("old_torch.ckpt").write_bytes(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." + b"\0" * 100)
    Path("empty.safetensors").write_bytes(b"")
    Path("text.ckpt").write_text("no weights " * 50)
    Path("nothing").mkdir()
    shapes = expected_shapes(TINY_SDXL)
    lora = "lora_unet_mid_block_attentions_0_proj_in"
    write(Path("lora.ckpt"), {f"{lora}.lora_down.weight": (4, 64), f"{lora}.lora_up.weight": (64, 4)})
    write(Path("nan.ckpt"), shapes, np.nan)
    write(Path("refiner.ckpt"), expected_shapes(REFINER))
    unet = {name: shape for name, shape in shapes.items() if name.startswith(UNET)}
    write(Path("misshapen.ckpt"), unet | {UNET + "out.2.bias": (5,)})
    write(Path("unknown.ckpt"), unet | {UNET + "new.bias": (5,)})
    write(Path("unet.ckpt"), unet)
    os.symlink("model.safetensors", "symbolic.ckpt")
    os.link("model.safetensors", "hard.ckpt")
    return tmp_path


def everything(folder: Path) -> dict:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


BROKEN = {
    "cut.safetensors": "is truncated",
    "cut_in_its_header.safetensors": "is truncated",
    "long_header.safetensors": "header claims",
    "short_header.safetensors": "header is damaged",
    "cut.ckpt": "is truncated",
    "torch.ckpt": "torch pickle",
    "old_torch.ckpt": "torch pickle",
    "empty.safetensors": "is empty",
    "text.ckpt": "not a MindSpore .ckpt",
    "nothing": "no diffusers folder",
    "none.ckpt": "no such weight file",
    "lora.ckpt": "LoRA",
    "nan.ckpt": "NaN",
}


def told(run, files, tool, *arguments) -> tuple[int, str]:
    """Run a tool that must fail -> exit code and its one line."""
    before = everything(files)
    code, _, error = run(tool, *arguments)
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    assert everything(files) == before
    return code, error


def test_every_tool_refuses_every_broken_file(run, files):
    for name, words in BROKEN.items():
        calls = [
            (CONVERT, "--task=st_to_ms", f"--weight_safetensors={name}", "--weight_ms=out.ckpt"),
            (CONVERT, "--task=ms_to_st", f"--weight_ms={name}", "--weight_safetensors=out.safetensors"),
            (CONVERT, "--task=ms_to_diffusers", f"--weight_ms={name}", "--weight_diffusers=out"),
            (MERGE, f"--base_weight={name}", "--additional_weights", "unet.ckpt", "--save_path=out.ckpt"),
            (MERGE, "--base_weight=model.ckpt", "--additional_weights", name, "--save_path=out.ckpt"),
        ]
        if name not in ("lora.ckpt", "nan.ckpt"):  # inspection says what these are
            calls.append((INSPECT, name))
        for call in calls:
            code, error = told(run, files, *call)
            assert code == 1, call
            assert words in error, call
            assert name in error, call


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("refiner.ckpt", "1 text encoder, model.ckpt"),
        (
            "misshapen.ckpt",
            "1 of 326 tensors have another shape (model.diffusion_model.out.2.bias (5,) instead of (4,))",
        ),
        ("unknown.ckpt", "1 of 327 tensors have no place in the base (model.diffusion_model.new.bias)"),
    ],
)
def test_merge_takes_only_what_fits(run, files, name, words):
    for more in ([], ["--dry_run"]):
        code, error = told(
            run, files, MERGE, "--base_weight=model.ckpt", "--additional_weights", "unet.ckpt", name, *more
        )
        assert code == 1
        assert words.replace("1 text encoder", "a text encoder") in error


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("model.safetensors", "same file"),
        ("symbolic.ckpt", "same file"),
        ("hard.ckpt", "same file"),
        ("nothing", "is a folder"),
        ("", "needs --weight_ms"),
    ],
)
def test_an_output_is_never_an_input(run, files, target, words):
    code, error = told(
        run, files, CONVERT, "--task=st_to_ms", "--weight_safetensors=model.safetensors", f"--weight_ms={target}"
    )
    assert code == 2
    assert words in error


@pytest.mark.parametrize(
    "call",
    [
        (CONVERT, "--task=ms_to_st", "--weight_ms=folder", "--weight_safetensors=folder/unet/new.safetensors"),
        (CONVERT, "--task=ms_to_diffusers", "--weight_ms=folder", "--weight_diffusers=folder/new"),
        (MERGE, "--base_weight=model.ckpt", "--additional_weights", "folder", "--save_path=folder/new.ckpt"),
    ],
)
def test_an_input_folder_is_left_alone(run, files, call):
    code, error = told(run, files, *call)
    assert code == 2
    assert "lies in the input folder: choose another place" in error


def test_the_outputs_folder_is_made_and_a_file_in_its_place_is_told(run, files):
    flags = (CONVERT, "--task=st_to_ms", "--weight_safetensors=model.safetensors")
    assert run(*flags, "--weight_ms=new/folder/out.ckpt")[0] == 0
    code, error = told(run, files, *flags, "--weight_ms=text.ckpt/out.ckpt")
    assert code == 1
    assert "a file is in the way at text.ckpt" in error
    code, error = told(run, files, *flags, "--weight_ms=/proc/out.ckpt")  # where nobody can write
    assert (code, error) == (1, "error: no such file or folder at /proc/out.ckpt\n")


def test_a_full_disk_is_one_line_and_leaves_what_was_there(run, files):
    Path("out.ckpt").write_bytes(b"old")
    stand_in = Path(f".out.ckpt.{os.getpid()}.tmp")
    for call in (
        (CONVERT, "--task=st_to_ms", "--weight_safetensors=model.safetensors", "--weight_ms=out.ckpt"),
        (MERGE, "--base_weight=model.ckpt", "--additional_weights", "unet.ckpt", "--save_path=out.ckpt"),
    ):
        stand_in.symlink_to("/dev/full")  # a device without space, in the place of the file to come
        code, _, error = run(*call)
        assert (code, error) == (
            1,
            "error: no space left on the disk at out.ckpt: free some and run the same command again\n",
        )
        assert not os.path.lexists(stand_in)
        assert Path("out.ckpt").read_bytes() == b"old"


def test_an_empty_output_is_no_missing_one(run, files):
    """A variable of a script that was never set."""
    code, error = told(
        run, files, MERGE, "--base_weight=model.ckpt", "--additional_weights", "unet.ckpt", "--save_path="
    )
    assert code == 2
    assert "is a folder: give the name of a file in it" in error


def test_a_dry_run_writes_nothing(run, files):
    before = everything(files)
    code, out, error = run(MERGE, "--base_weight=model.ckpt", "--additional_weights", "unet.ckpt", "--dry_run")
    assert (code, error) == (0, "")
    assert out.endswith("would write model_merged.ckpt\n")
    assert everything(files) == before


def test_a_folder_that_lost_a_part_is_one_line(run, files):
    shutil.rmtree("folder/vae")
    code, error = told(run, files, CONVERT, "--task=diffusers_to_ms", "--weight_diffusers=folder", "--weight_ms=o.ckpt")
    assert code == 1
    assert "lacks the folder vae" in error
