"""The JSON files of a diffusers folder, written from an architecture."""

from typing import Any

from gm.errors import SuiteError
from gm.models.architecture import (
    HEAD_WIDTH,
    AutoencoderArchitecture,
    ModelArchitecture,
    TextEncoderArchitecture,
    UNetArchitecture,
)

DIFFUSERS_VERSION = "0.36.0"  # the format these files are in; any later release reads it
Config = dict[str, Any]


def unet_config(arch: UNetArchitecture) -> Config:
    """``unet/config.json``.

    Raises:
        SuiteError: diffusers cannot describe such a network.
    """
    for depths in (*arch.down_depths, *arch.up_depths):
        if any(depths) and not all(depths):
            raise SuiteError("diffusers has no levels where only some blocks have attention: keep this model as .ckpt")
    last = arch.down_depths[-1]
    if arch.mid_depth is not None and any(last) and last[0] != arch.mid_depth:
        raise SuiteError("diffusers ties the depth of the middle to the lowest level: keep this model as .ckpt")
    down = [_depth(depths) for depths in arch.down_depths]
    if not any(last):  # diffusers reads the depth of the middle here
        down[-1] = arch.mid_depth or 1
    up = [_depth(depths) for depths in arch.up_depths]
    mirrored = [down[level] if any(arch.down_depths[level]) else 1 for level in range(len(down))][::-1]
    symmetric = up == mirrored and not any(isinstance(depth, list) for depth in down)
    blocks = [len(depths) for depths in arch.down_depths]
    config: Config = {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": DIFFUSERS_VERSION,
        "sample_size": 128 if arch.vector_dim else 64,
        "in_channels": arch.in_channels,
        "out_channels": arch.out_channels,
        "block_out_channels": list(arch.channels),
        "layers_per_block": blocks[0] if len(set(blocks)) == 1 else blocks,
        "down_block_types": [_block("Down", depths) for depths in arch.down_depths],
        "mid_block_type": "UNetMidBlock2D" if arch.mid_depth is None else "UNetMidBlock2DCrossAttn",
        "up_block_types": [_block("Up", depths) for depths in arch.up_depths],
        "transformer_layers_per_block": down,
        "reverse_transformer_layers_per_block": None if symmetric else up,
        # Its name notwithstanding, this is the number of heads.
        "attention_head_dim": arch.num_heads or [max(1, width // HEAD_WIDTH) for width in arch.channels],
        "cross_attention_dim": arch.context_dim,
        "use_linear_projection": arch.linear_projection,
        "norm_num_groups": arch.norm_groups,
        "norm_eps": 1e-5,
        "act_fn": "silu",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    }
    if arch.vector_dim is not None:
        config["addition_embed_type"] = "text_time"
        config["addition_time_embed_dim"] = 256
        config["projection_class_embeddings_input_dim"] = arch.vector_dim
    if arch.guidance_dim is not None:
        config["time_cond_proj_dim"] = arch.guidance_dim
    return config


def _block(way: str, depths: tuple[int, ...]) -> str:
    return f"CrossAttn{way}Block2D" if any(depths) else f"{way}Block2D"


def _depth(depths: tuple[int, ...]) -> int | list[int]:
    return max(1, depths[0]) if len(set(depths)) == 1 else list(depths)


def autoencoder_config(arch: AutoencoderArchitecture, sample_size: int) -> Config:
    """``vae/config.json``."""
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": DIFFUSERS_VERSION,
        "sample_size": sample_size,
        "in_channels": arch.in_channels,
        "out_channels": arch.in_channels,
        "latent_channels": arch.latent_channels,
        "block_out_channels": list(arch.channels),
        "layers_per_block": arch.blocks_per_level,
        "down_block_types": ["DownEncoderBlock2D"] * len(arch.channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(arch.channels),
        "norm_num_groups": arch.norm_groups,
        "act_fn": "silu",
        "scaling_factor": arch.scale_factor,
        "force_upcast": True,
    }


def text_encoder_config(arch: TextEncoderArchitecture, layers: int, projection: bool) -> Config:
    """``text_encoder/config.json``; ``projection``: with the pooled projection."""
    return {
        "architectures": ["CLIPTextModelWithProjection" if projection else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": arch.vocab_size,
        "hidden_size": arch.width,
        "intermediate_size": arch.mlp_dim,
        "num_hidden_layers": layers,
        "num_attention_heads": arch.heads,
        "max_position_embeddings": arch.max_length,
        "hidden_act": arch.activation,
        "projection_dim": arch.projection_dim or arch.width,
        "layer_norm_eps": 1e-5,
        # As in every released model: 2 makes transformers pool at the highest id, which is the end of text.
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }


def scheduler_config(name: str) -> Config:
    """``scheduler/scheduler_config.json``: the schedule all released models of the family were trained with."""
    config: Config = {
        "_class_name": "EulerDiscreteScheduler",
        "_diffusers_version": DIFFUSERS_VERSION,
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "interpolation_type": "linear",
        "use_karras_sigmas": False,
    }
    if name in ("sd-1", "sd-2"):
        config |= {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False}
        del config["interpolation_type"], config["use_karras_sigmas"]
    return config


def model_index(architecture: ModelArchitecture) -> Config:
    """``model_index.json``: which pipeline, and what its parts are."""
    base: Config = {
        "_diffusers_version": DIFFUSERS_VERSION,
        "vae": ["diffusers", "AutoencoderKL"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", scheduler_config(architecture.name)["_class_name"]],
    }
    text = {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    if architecture.name in ("sd-1", "sd-2"):
        absent = {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
        return {"_class_name": "StableDiffusionPipeline"} | base | text | absent
    text_2 = {
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
    }
    if len(architecture.text_encoders) == 1:
        refiner = {
            "_class_name": "StableDiffusionXLImg2ImgPipeline",
            "text_encoder": [None, None],
            "tokenizer": [None, None],
            "force_zeros_for_empty_prompt": False,
            "requires_aesthetics_score": True,
        }
        return refiner | base | text_2
    return {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True} | base | text | text_2
