"""demo/sampling_without_streamlit.py as a user calls it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo import sampling_without_streamlit as door
from gm.errors import SuiteError

ROOT = Path(door.__file__).resolve().parents[1]
TINY = (
    "--config",
    str(ROOT / "configs/inference/tiny_sdxl.yaml"),
    "model.tokenizer=" + str(ROOT / "demo/tiny/tokenizer"),
    "model.weight=" + str(ROOT / "demo/tiny/tiny_sdxl.safetensors"),
)
PROMPTS = "a red circle on grey\n# a comment\n\na blue square on black --n green --d 7\n"


def call(words):
    """The command in a process of its own."""
    command = [sys.executable, str(ROOT / "demo/sampling_without_streamlit.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def weight(tmp_path_factory):
    """A whole tiny checkpoint with random weights."""
    pytest.importorskip("mindspore")
    from gm.models.architecture import TINY_SDXL
    from gm.models.build import build_autoencoder, build_conditioner, build_unet
    from gm.weights.load import write_parameters

    path = tmp_path_factory.mktemp("weights") / "tiny.ckpt"
    cells = (
        build_unet(TINY_SDXL.unet, 0),
        build_autoencoder(TINY_SDXL.autoencoder, 1),
        build_conditioner(TINY_SDXL, 2),
    )
    write_parameters(path, [parameter for cell in cells for parameter in cell.get_parameters()])
    return path


@pytest.fixture(scope="module")
def drawn(weight, tmp_path_factory):
    """The same command twice, into two folders; the second time with the graphs of the first."""
    folder = tmp_path_factory.mktemp("drawn")
    prompts = folder / "prompts.txt"
    prompts.write_text(PROMPTS)
    words = [*TINY, "--weight", str(weight), "--sample_step", "3", "--num_images", "2", "--batch_size", "3"]
    words += ["--compile_cache", str(folder / "graphs")]
    for name in ("one", "two"):
        latents = ("--save_latent", str(folder / f"{name}.npy"))
        done = call([*words, "--prompt", str(prompts), "--save_path", str(folder / name), *latents])
        assert done.returncode == 0, done.stderr
    return folder


def test_names_are_index_seed_and_prompt(drawn):
    assert sorted(path.name for path in (drawn / "one").iterdir()) == [
        "000_seed42_a-red-circle-on-grey.png",
        "001_seed43_a-red-circle-on-grey.png",
        "002_seed7_a-blue-square-on-black.png",
        "003_seed8_a-blue-square-on-black.png",
        "contact_sheet.png",
        "manifest.json",
    ]


def test_the_same_command_gives_the_same_bytes(drawn):
    for path in (drawn / "one").iterdir():
        assert path.read_bytes() == (drawn / "two" / path.name).read_bytes(), path.name
    assert (drawn / "one.npy").read_bytes() == (drawn / "two.npy").read_bytes()


def test_manifest_and_pictures_agree(drawn):
    images = json.loads((drawn / "one" / "manifest.json").read_text())["images"]
    assert [(image["prompt"], image["negative_prompt"], image["seed"]) for image in images] == [
        ("a red circle on grey", "", 42),
        ("a red circle on grey", "", 43),
        ("a blue square on black", "green", 7),
        ("a blue square on black", "green", 8),
    ]
    for image in images:
        with Image.open(drawn / "one" / image["file"]) as picture:
            assert picture.size == (64, 64)
            settings = json.loads(picture.text["settings"])
        assert settings == {name: value for name, value in image.items() if name != "file"}


def test_final_latents_are_saved(drawn):
    latents = np.load(drawn / "one.npy")
    assert (latents.shape, latents.dtype) == ((4, 4, 8, 8), np.float32)


def test_seeds_and_prompts_make_different_pictures(drawn):
    assert len({(drawn / "one" / path.name).read_bytes() for path in (drawn / "one").glob("0*.png")}) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--height", "60"], "--height takes a whole number .*multiple of 8"),
        (["--width", "1001"], "--width takes a whole number .*multiple of 8, not '1001'"),
        (["--sampler", "eulr"], "sampler 'eulr' is unknown: use one of euler, "),
        (["--sample_step", "1001"], "1001 sampling steps: choose between 1 and 1000"),
        (["--weight", "nothing.ckpt"], "no such weight file: nothing.ckpt"),
        (["--weight", ""], "--weight"),
        (["--task", "cache"], "txt2img or img2img"),
        (["--task", "img2img"], "--img picture.png"),
        (["--img", "in.png"], "--task img2img"),
        (
            ["--task", "img2img", "--img", "in.png", "--strength", "0"],
            "--strength takes a number above 0 and of at most 1",
        ),
        (["--task", "img2img", "--img", "in.png", "--strength", "1.1"], "--strength takes a number above 0"),
        (["--task", "img2img", "--img", "in.png"], "no such picture: in.png"),
        (["--init_latent_path", "noise.npy"], "no such file of latents: noise.npy"),
        (["--rescale_betas_zero_snr", "True"], "v_prediction"),
        (["--stage2_weight", "b.ckpt"], "--stage2_weight needs --denoising_end"),
        (["--stage2_weight", "b.ckpt", "--denoising_end", "0.65"], "no such weight file: b.ckpt"),
        (["--stage2_weight", "b.ckpt", "--denoising_end", "1.0"], "--denoising_end takes a number above 0 and below 1"),
        (["--stage2_weight", "b.ckpt", "--denoising_end", "0.01"], "leaves none for the first stage"),
        (["--stage2_prediction_type", "epsilon"], "does nothing without --stage2_weight"),
        (
            ["--stage2_weight", "b.ckpt", "--denoising_end", "0.65", "--stage2_rescale_betas_zero_snr", "True"],
            "--stage2_prediction_type v_prediction",
        ),
        (["--denoising_start", "0.65"], "name them with --init_latent_path"),
        (["--denoising_start", "0.65", "--img", "in.png", "--task", "img2img"], "use --strength"),
        (["--tokenizer", "nowhere"], "no tokenizer folder nowhere"),
        (["--sampler", "ddim", "--karras_sigmas", "True"], "Karras"),
        (["--prompt", "prompts.txt"], "no prompt file prompts.txt"),
        (["--prompt", "a circle --ar 16:9"], "unknown option --ar"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_loaded(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gm.sampling.run.start", lambda launch: pytest.fail("the device was started"))
    with pytest.raises(SuiteError, match=message) as raised:
        door.main([*TINY, "--prompt", "a red circle", *words])
    assert "\n" not in str(raised.value)


def test_files_that_are_no_such_files_are_told(tmp_path, monkeypatch, weight):
    monkeypatch.setattr("gm.sampling.run.start", lambda launch: pytest.fail("the device was started"))
    text, empty = tmp_path / "some.png", tmp_path / "empty.txt"
    text.write_text("no picture")
    empty.write_text("\n")
    words = [*TINY, "--weight", str(weight), "--prompt", "a red circle", "--save_path", str(tmp_path / "out")]
    for extra, message in (
        (["--task", "img2img", "--img", str(text)], "is no picture Pillow can read"),
        (["--init_latent_path", str(text)], "is no .npy file"),
        (["--prompt", str(empty)], "is empty: write one prompt a line"),
        (["--tokenizer", str(tmp_path)], "lacks vocab.json and merges.txt"),
        (["--weight", str(text)], "some.png"),
    ):
        if extra[0] == "--weight":
            monkeypatch.setattr("gm.sampling.run.start", lambda launch: None)
        with pytest.raises(SuiteError, match=message):
            door.main([*words, *extra])


def test_exit_codes_and_one_line():
    for words, code in ((["--weight", "nothing.ckpt"], 1), (["--height", "60"], 2)):
        done = call([*TINY, "--prompt", "x", *words])
        assert done.returncode == code
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
