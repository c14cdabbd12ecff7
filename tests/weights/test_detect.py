"""Keys and shapes alone say what a checkpoint is."""

import gzip
from pathlib import Path

import pytest

from gm.errors import SuiteError
from gm.models.architecture import CLIP_L, TINY_SDXL, AutoencoderArchitecture, ModelArchitecture
from gm.weights.detect import KNOWN_UNETS, SD_1, detect
from gm.weights.keys import AUTOENCODER, UNET, expected_shapes


def test_every_architecture_is_found_again(model):
    assert detect(expected_shapes(model)) == model


def test_the_released_sdxl_file_is_sdxl():
    text = gzip.decompress((Path(__file__).parent / "sdxl_base_keys.tsv.gz").read_bytes()).decode()
    pairs = (line.split("\t") for line in text.splitlines())
    shapes = {name: () if shape == "scalar" else tuple(map(int, shape.split("x"))) for name, shape in pairs}
    assert detect(shapes) == ModelArchitecture()


@pytest.mark.parametrize("name", KNOWN_UNETS)
def test_a_unet_on_its_own_is_enough(name):
    shapes = expected_shapes(ModelArchitecture("sdxl-like", KNOWN_UNETS[name], None, ()))
    found = detect(shapes)
    assert (found.name, found.unet) == (name, KNOWN_UNETS[name])
    assert found.autoencoder is None
    assert found.text_encoders == ()
    assert found.size_numbers == {"sdxl-refiner": 5, "sd-1": 0, "sd-2": 0}.get(name, 6)


@pytest.mark.parametrize(
    ("keep", "parts"),
    [
        (("first_stage_model.",), (False, True, 0)),
        (("conditioner.",), (False, False, 2)),
        (("conditioner.embedders.1.",), (False, False, 1)),
        (("model.", "first_stage_model."), (True, True, 0)),
    ],
)
def test_partial_files_are_what_they_hold(tiny_shapes, keep, parts):
    found = detect({name: shape for name, shape in tiny_shapes.items() if name.startswith(keep)})
    assert (found.unet is not None, found.autoencoder is not None, len(found.text_encoders)) == parts


def test_order_of_keys_does_not_matter(tiny_shapes):
    assert detect(dict(reversed(tiny_shapes.items()))) == TINY_SDXL


def test_extra_keys_of_training_do_not_disturb(tiny_shapes):
    assert detect(tiny_shapes | {"model_ema.decay": (), "betas": (1000,), "denoiser.sigmas": (1000,)}) == TINY_SDXL


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"], "LoRA"),
        (["base_model.model.unet.mid_block.attentions.0.to_q.lora_A.weight"], "LoRA"),
        (["down_blocks.0.resnets.0.conv1.weight"], "UNet of a diffusers folder"),
        (["text_model.embeddings.token_embedding.weight"], "text encoder on its own"),
        (["text_model.embeddings.token_embedding.weight", "vision_model.post_layernorm.weight"], "a CLIP"),
        (["double_blocks.0.img_mod.lin.weight"], "FLUX"),
        (["something.else", "and.more"], "something.else, and.more"),
        ([], "without tensors"),
    ],
)
def test_other_files_are_named_for_what_they_are(keys, words):
    with pytest.raises(SuiteError, match=words):
        detect({key: (4, 4) for key in keys})


@pytest.mark.parametrize(
    "gone", ["input_blocks.0.0.weight", "input_blocks.1.0.", "output_blocks.5.", "out.2.weight", "middle_block."]
)
def test_a_damaged_unet_is_one_line(tiny_shapes, gone):
    rest = {name: shape for name, shape in tiny_shapes.items() if not name.startswith(UNET + gone)}
    with pytest.raises(SuiteError, match="incomplete") as error:
        detect(rest)
    assert "\n" not in str(error.value)


def test_no_single_missing_or_flat_key_breaks_detection(tiny_shapes):
    """A key away, or of a wrong rank: an architecture or one SuiteError, never another exception."""
    for name in list(tiny_shapes)[::4]:
        for shapes in ({k: v for k, v in tiny_shapes.items() if k != name}, tiny_shapes | {name: (3,)}):
            try:
                detect(shapes)
            except SuiteError as error:
                assert "\n" not in str(error)  # noqa: PT017


def test_scale_factor_follows_the_family():
    shapes = expected_shapes(ModelArchitecture("sd-1", SD_1, AutoencoderArchitecture(), (CLIP_L,)))
    assert detect(shapes).autoencoder.scale_factor == 0.18215
    only = {name: shape for name, shape in shapes.items() if name.startswith(AUTOENCODER)}
    assert detect(only).autoencoder.scale_factor == 0.13025
