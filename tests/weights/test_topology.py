"""Every key and shape of the released models at full size, through diffusers' own converters; nothing is allocated.

The configurations are those of the models on the hub, so that neither our detection nor our own configurations nor our
renaming has a part in the answer.
"""

import pytest

from gm.weights.keys import AUTOENCODER, UNET, expected_shapes

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
single_file = pytest.importorskip("diffusers.loaders.single_file_utils")

pytestmark = pytest.mark.reference

DOWN, DOWN_ATTENTION, UP, UP_ATTENTION = "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": (DOWN, DOWN_ATTENTION, DOWN_ATTENTION),
    "up_block_types": (UP_ATTENTION, UP_ATTENTION, UP),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD_1 = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (DOWN_ATTENTION, DOWN_ATTENTION, DOWN_ATTENTION, DOWN),
    "up_block_types": (UP, UP_ATTENTION, UP_ATTENTION, UP_ATTENTION),
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
UNETS = {
    "sdxl-base": SDXL,
    "sdxl-refiner": SDXL
    | {
        "block_out_channels": (384, 768, 1536, 1536),
        "down_block_types": (DOWN, DOWN_ATTENTION, DOWN_ATTENTION, DOWN),
        "up_block_types": (UP, UP_ATTENTION, UP_ATTENTION, UP),
        "transformer_layers_per_block": 4,
        "attention_head_dim": (6, 12, 24, 24),
        "cross_attention_dim": 1280,
        "projection_class_embeddings_input_dim": 2560,
    },
    "ssd-1b": SDXL
    | {
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": (1, (2, 2), (4, 4)),
        "reverse_transformer_layers_per_block": ((4, 4, 10), (2, 1, 1), 1),
    },
    "vega": SDXL
    | {
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": (1, (1, 1), (2, 2)),
        "reverse_transformer_layers_per_block": ((2, 2, 2), (1, 1, 1), 1),
    },
    "sd-1": SD_1,
    "sd-2": SD_1 | {"attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024, "use_linear_projection": True},
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
BIG_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
VIT_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
# Per model: text encoders as (their configuration on the hub, the beginning of their original keys).
TEXT = {
    "sdxl-base": [(CLIP_L, "conditioner.embedders.0.transformer."), (BIG_G, "conditioner.embedders.1.model.")],
    "sdxl-refiner": [(BIG_G, "conditioner.embedders.0.model.")],
    "sd-1": [(CLIP_L, "cond_stage_model.transformer.")],
    "sd-2": [(VIT_H, "cond_stage_model.model.")],
}
TEXT["ssd-1b"] = TEXT["vega"] = TEXT["sdxl-base"]


@pytest.fixture(params=UNETS)
def name(request):
    return request.param


@pytest.fixture
def checkpoint(name, models):
    """The original file of a model, of tensors without memory."""
    shapes = expected_shapes(models[name])
    return {key: torch.empty(shape, device="meta", dtype=torch.float16) for key, shape in shapes.items()}


def built(make, config: dict) -> dict:
    with torch.device("meta"):
        return shapes(make(config).state_dict())


def shapes(tensors: dict) -> dict:
    return {key: tuple(value.shape) for key, value in tensors.items()}


def test_unet(name, checkpoint):
    ours = {key: value for key, value in checkpoint.items() if key.startswith(UNET)}
    model = built(diffusers.UNet2DConditionModel.from_config, UNETS[name])
    assert len(ours) == len(model)
    assert shapes(single_file.convert_ldm_unet_checkpoint(ours, {"layers_per_block": 2} | UNETS[name])) == model


def test_autoencoder(checkpoint):
    ours = {key: value for key, value in checkpoint.items() if key.startswith(AUTOENCODER)}
    model = built(diffusers.AutoencoderKL.from_config, VAE)
    assert len(ours) == len(model)
    assert shapes(single_file.convert_ldm_vae_checkpoint(ours, VAE)) == model


def test_text_encoders(name, checkpoint):
    covered = set()
    for config, prefix in TEXT[name]:
        ours = {key: value for key, value in checkpoint.items() if key.startswith(prefix)}
        covered |= set(ours)
        pooled = "projection_dim" in config
        kind = transformers.CLIPTextModelWithProjection if pooled else transformers.CLIPTextModel
        with torch.device("meta"):
            model = kind(transformers.CLIPTextConfig(**config))
        if prefix.endswith("transformer."):
            theirs = single_file.convert_ldm_clip_checkpoint(ours, remove_prefix=prefix)
        else:
            theirs = single_file.convert_open_clip_checkpoint(model, ours, prefix=prefix)
        expected = shapes(model.state_dict())
        if not any(key.startswith("text_model.") for key in expected):  # transformers 5 leaves this level out
            expected = {f"text_model.{key}": shape for key, shape in expected.items()}
        assert shapes(theirs) == expected
    assert covered == {key for key in checkpoint if not key.startswith((UNET, AUTOENCODER))}
