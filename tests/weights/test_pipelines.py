"""What we export, diffusers' pipelines load and draw the same picture from; what they save, we read."""

import json
from dataclasses import replace

import numpy as np
import pytest

from gm.models.architecture import TINY_SDXL
from gm.weights.ckpt import save_ckpt
from gm.weights.convert import ckpt_to_safetensors
from gm.weights.files import open_weights
from gm.weights.folder import ckpt_to_diffusers, diffusers_to_ckpt
from gm.weights.keys import expected_shapes

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.reference

WORDS = ["!", "a</w>", "red</w>", "circle</w>"]
# from_single_file tells the text encoders apart by width, so they must differ.
ARCHITECTURE = replace(
    TINY_SDXL,
    unet=replace(TINY_SDXL.unet, context_dim=64 + 128, vector_dim=128 + 6 * 256),
    text_encoders=(
        replace(TINY_SDXL.text_encoders[0], vocab_size=520),
        replace(TINY_SDXL.text_encoders[1], vocab_size=520, width=128, projection_dim=128),
    ),
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small are slowed down by threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A tiny model of random weights as .ckpt, single file and diffusers folder."""
    root = tmp_path_factory.mktemp("exported")
    rng = np.random.default_rng(0)

    def values(name, shape):
        if len(shape) < 2:
            return np.asarray(name.endswith("weight") + 0.1 * rng.normal(size=shape), np.float32)
        return np.asarray(rng.normal(size=shape) / np.sqrt(np.prod(shape[1:])), np.float32)

    tensors = ((name, shape, "F32", values(name, shape)) for name, shape in expected_shapes(ARCHITECTURE).items())
    save_ckpt(root / "model.ckpt", tensors)
    words = [*WORDS, *(f"w{index}" for index in range(520 - len(WORDS) - 2)), "<|startoftext|>", "<|endoftext|>"]
    (root / "tokenizer").mkdir()
    (root / "tokenizer/vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (root / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    ckpt_to_diffusers(root / "model.ckpt", root / "folder", tokenizer=root / "tokenizer")
    ckpt_to_safetensors(root / "model.ckpt", root / "model.safetensors")
    return root


def draw(pipeline) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    size = (64, 64)
    return pipeline(
        "a red circle",
        num_inference_steps=2,
        height=64,
        width=64,
        original_size=size,
        target_size=size,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images


@pytest.fixture(scope="module")
def pipeline(exported):
    return diffusers.StableDiffusionXLPipeline.from_pretrained(exported / "folder")


@pytest.fixture(scope="module")
def picture(pipeline):
    picture = draw(pipeline)
    assert np.isfinite(picture).all()
    assert picture.std() > 0.05
    return picture


def test_every_weight_of_the_pipeline_is_ours(exported, pipeline):
    """No parameter was left at random: the sums of all parts are those of the file."""
    ours = theirs = count = 0
    with open_weights(exported / "model.ckpt") as weights:
        for name in weights.names():
            if not name.endswith("logit_scale"):
                ours += np.abs(weights.read(name)).sum(dtype=np.float64)
                count += weights.read(name).size
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
        theirs += sum(float(value.abs().sum(dtype=torch.float64)) for value in part.state_dict().values())
        count -= sum(value.numel() for value in part.state_dict().values())
    assert count == 0
    assert theirs == pytest.approx(ours, rel=1e-9)


def test_the_single_file_draws_the_same_picture(exported, picture):
    single = diffusers.StableDiffusionXLPipeline.from_single_file(
        str(exported / "model.safetensors"), config=str(exported / "folder"), local_files_only=True
    )
    np.testing.assert_array_equal(draw(single), picture)


def test_folder_to_ckpt_to_folder_draws_the_same_picture(exported, tmp_path, picture):
    diffusers_to_ckpt(exported / "folder", tmp_path / "again.ckpt")
    ckpt_to_diffusers(tmp_path / "again.ckpt", tmp_path / "again", tokenizer=exported / "folder")
    again = diffusers.StableDiffusionXLPipeline.from_pretrained(tmp_path / "again")
    np.testing.assert_array_equal(draw(again), picture)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_diffusers_saves_we_read(exported, tmp_path, dtype):
    kind = getattr(torch, dtype)
    loaded = diffusers.StableDiffusionXLPipeline.from_pretrained(exported / "folder", dtype=kind)
    loaded.save_pretrained(tmp_path / "saved")
    with open_weights(tmp_path / "saved") as saved, open_weights(exported / "model.ckpt") as original:
        assert saved.architecture() == ARCHITECTURE
        assert set(saved.names()) == set(original.names())
        for name in original.names():
            if name.endswith("logit_scale"):
                continue
            expected = torch.from_numpy(original.read(name)).to(kind)
            expected = expected.view(torch.uint16).numpy() if dtype == "bfloat16" else expected.numpy()
            np.testing.assert_array_equal(saved.read(name), expected)
