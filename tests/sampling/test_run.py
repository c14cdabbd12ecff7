import re
from pathlib import Path

import pytest
from PIL import Image

from gm.config import load
from gm.data.tokens import Tokenizers
from gm.errors import SuiteError, explain
from gm.models.architecture import TINY_SDXL
from gm.sampling.run import build, run, settings

ROOT = Path(__file__).parents[2]
RECIPES, TOKENIZER = ROOT / "configs/inference", ROOT / "demo/tiny/tokenizer"
WEIGHT = ROOT / "demo/tiny/tiny_sdxl.safetensors"


def test_scores_of_the_command_line_reach_the_refiner():
    arguments = [
        "--prompt",
        "x",
        "--config",
        str(RECIPES / "sd_xl_refiner.yaml"),
        "--task",
        "img2img",
        "--img",
        "x.png",
    ]
    chosen = settings(load(arguments, door="sample"))
    assert (chosen.time_ids(5)[-1], chosen.time_ids(5, negative=True)[-1], chosen.strength) == (6.0, 2.5, 0.3)
    arguments += ["--aesthetic_score", "7", "--negative_aesthetic_score", "1"]
    chosen = settings(load(arguments, door="sample"))
    assert (chosen.time_ids(5)[-1], chosen.time_ids(5, negative=True)[-1]) == (7.0, 1.0)


@pytest.mark.parametrize(
    ("recipe", "kind"), [("sd_1_5", "epsilon"), ("sd_2_1", "v_prediction"), ("sd_xl_base", "epsilon")]
)
def test_a_recipe_says_what_its_model_predicts(recipe, kind):
    config = load(["--prompt", "x", "--config", str(RECIPES / f"{recipe}.yaml")], door="sample")
    assert config.diffusion.prediction_type == kind
    assert settings(config).unconditional == "auto"


def stages(tmp_path, second, *words):
    """The pipeline of the tiny recipe with a second stage."""
    arguments = ["--prompt", "x", "--config", str(RECIPES / "tiny_sdxl.yaml"), "--tokenizer", str(TOKENIZER)]
    arguments += ["--weight", str(WEIGHT), "--stage2_weight", str(second), "--denoising_end", "0.65", *words]
    config = load(arguments, door="sample")
    return build(config, Tokenizers.of(config.model))


def test_a_second_unet_alone_shares_the_texts_of_the_first(tmp_path):
    from gm.models.build import build_unet
    from gm.weights.load import write_parameters

    write_parameters(tmp_path / "unet_10.ckpt", build_unet(TINY_SDXL.unet, 3))
    words = ("--prediction_type", "v_prediction", "--rescale_betas_zero_snr", "True")
    pipeline = stages(tmp_path, tmp_path / "unet_10.ckpt", *words)
    assert pipeline.second.texts is pipeline.first.texts
    assert pipeline.second.prediction_type == "v_prediction"
    assert pipeline.second.alphas_cumprod[-1] == pipeline.alphas_cumprod[-1] == 0
    assert pipeline.second.networks.architecture.size_numbers == 6


def test_a_second_model_has_texts_and_a_schedule_of_its_own(tmp_path, write_random_model, families):
    second = write_random_model(tmp_path / "refiner.ckpt", families["refiner"])
    words = ("--prediction_type", "v_prediction", "--rescale_betas_zero_snr", "True")
    words += ("--stage2_prediction_type", "epsilon", "--stage2_rescale_betas_zero_snr", "False")
    pipeline = stages(tmp_path, second, *words)
    assert pipeline.second.texts is not pipeline.first.texts
    assert pipeline.second.prediction_type == "epsilon"
    assert pipeline.second.alphas_cumprod[-1] > 0 == pipeline.alphas_cumprod[-1]


def test_a_second_stage_that_cannot_go_on_is_refused(tmp_path, write_random_model, families):
    from gm.models.build import build_autoencoder, build_unet
    from gm.weights.load import write_parameters

    other = write_random_model(tmp_path / "sd15.ckpt", families["sd-1"])
    with pytest.raises(SuiteError, match=r"sd15.ckpt draws latents of 4 channels scaled by 0.18215.*one family"):
        stages(tmp_path, other)
    write_parameters(tmp_path / "refiner_unet.ckpt", build_unet(families["refiner"].unet, 3))
    with pytest.raises(SuiteError, match=r"no text encoders.*merge_weight\.py"):
        stages(tmp_path, tmp_path / "refiner_unet.ckpt")
    write_parameters(tmp_path / "vae.ckpt", build_autoencoder(TINY_SDXL.autoencoder, 3))
    with pytest.raises(SuiteError, match="has no UNet"):
        stages(tmp_path, tmp_path / "vae.ckpt")


def test_weights_of_two_parameterisations_are_refused_with_the_flag_that_mends_it(tmp_path):
    second = tmp_path / "run/weights/unet_10.ckpt"
    second.parent.mkdir(parents=True)
    second.write_bytes(b"")
    (tmp_path / "run/config.yaml").write_text(
        "diffusion: {prediction_type: v_prediction, rescale_betas_zero_snr: true}"
    )
    arguments = ["--prompt", "x", "--config", str(RECIPES / "tiny_sdxl.yaml"), "--weight", str(WEIGHT)]
    arguments += ["--stage2_weight", str(second), "--denoising_end", "0.65"]
    with pytest.raises(SuiteError, match=r"trained with prediction_type v_.*give --stage2_prediction_type v_"):
        run(load(arguments, door="sample"))


@pytest.fixture
def no_device(monkeypatch, tmp_path):
    """The arguments of a run that ends where the device would be started."""

    def stop(config):
        raise SuiteError("before the device")

    monkeypatch.setattr("gm.sampling.run.start_device", stop)
    arguments = ["--config", str(RECIPES / "tiny_sdxl.yaml"), "--tokenizer", str(TOKENIZER), "--weight", str(WEIGHT)]
    return [*arguments, "--save_path", str(tmp_path / "out")]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--save_path", "file"], "a file is in the way at file: choose another place"),
        (["--save_path", "file/below"], "a file is in the way at file/below: choose another place"),
        (["--save_latent", "file/latents.npy"], "a file is in the way at file: choose another place"),
        (["--save_latent", "folder"], "--save_latent folder is a folder: give the name of a file in it"),
        (["--save_latent", "a.npy", "--prompt", "prompts.txt"], "--save_latent needs pictures of one size"),
        (["--task", "img2img", "--img", "folder"], "a folder, not a file at folder: name a file"),
        (["--task", "img2img", "--img", "file"], "file is no picture Pillow can read"),
        (["--task", "img2img", "--img", "cut.png"], r"cut.png is damaged \(.*\): give another picture"),
    ],
)
def test_what_cannot_be_read_or_written_is_told_before_the_work(no_device, monkeypatch, tmp_path, words, told):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").write_text("text")
    Path("prompts.txt").write_text("a circle\na square --w 128\n")
    Image.effect_noise((64, 64), 50).save("cut.png")
    Path("cut.png").write_bytes(Path("cut.png").read_bytes()[:-900])
    with pytest.raises((SuiteError, OSError)) as caught:
        run(load([*no_device, "--prompt", "x", *words], door="sample"))
    assert re.search(told, explain(caught.value)[0])


@pytest.mark.parametrize(("most", "told"), [("75", "the last 85 tokens"), ("150", "the last 10 tokens"), ("225", "")])
def test_what_is_not_seen_of_a_long_prompt_is_told(no_device, caplog, most, told):
    with pytest.raises(SuiteError, match="before the device"):
        run(load([*no_device, "--prompt", "red " * 160, "--max_token_length", most], door="sample"))
    assert (f"are not seen: --max_token_length is {most}" in caplog.text) == bool(told)
    assert told in caplog.text
