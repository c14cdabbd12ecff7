"""The count of arithmetic: published figures, a network counted by hand, torch's own counter."""

import pytest

from gm.models.architecture import TINY_SDXL, ModelArchitecture, TextEncoderArchitecture, UNetArchitecture
from gm.models.flops import text_encoder_forward, training, unet_forward
from gm.weights.detect import KNOWN_UNETS


@pytest.mark.parametrize(("name", "teraflops"), [("sdxl-base", 6.76), ("ssd-1b", 4.21)])
def test_known_models_at_1024_pixels(name, teraflops):
    assert round(unet_forward(KNOWN_UNETS[name], 128, 128) / 1e12, 2) == teraflops


def test_a_network_counted_by_hand():
    """One level of 8 channels, one residual block with a transformer down, a residual middle, two blocks up; 4x6."""
    arch = UNetArchitecture(
        channels=(8,), down_depths=((1,),), mid_depth=None, up_depths=((0, 0),), context_dim=5, vector_dim=3
    )
    pixels, tokens = 24, 7
    time = 8 * 32 + 32 * 32 + 3 * 32 + 32 * 32
    same = 2 * pixels * 8 * 8 * 9 + 32 * 8  # a residual block of 8 to 8 channels
    joined = pixels * (16 * 8 * 9 + 8 * 8 * 9 + 16 * 8) + 32 * 8  # 16 to 8: the skip needs a convolution too
    attention = 4 * pixels * 8 * 8 + 2 * pixels * pixels * 8
    cross = 2 * pixels * 8 * 8 + 2 * tokens * 5 * 8 + 2 * pixels * tokens * 8
    transformer = 2 * pixels * 8 * 8 + attention + cross + pixels * (8 * 64 + 32 * 8)
    ends = 2 * pixels * 4 * 8 * 9
    products = time + ends + same + transformer + same + 2 * joined
    assert unet_forward(arch, 4, 6, context_length=tokens) == 2 * products


def test_training_is_three_times_the_forward_pass_of_what_is_trained():
    model = ModelArchitecture()
    unet = unet_forward(model.unet, 128, 128)
    towers = [text_encoder_forward(tower) for tower in model.text_encoders]
    assert training(model, 128, 128) == 3 * unet
    assert training(model, 128, 128, text_encoders=True) == 3 * (unet + sum(towers))


@pytest.mark.parametrize(
    ("pooled", "layer", "layers"), [(False, "penultimate", 2), (False, "last", 3), (True, "penultimate", 3)]
)
def test_a_text_tower_counted_by_hand(pooled, layer, layers):
    """Three layers of width 6 over 5 tokens; the last is left out where nothing depends on it."""
    arch = TextEncoderArchitecture(
        width=6, layers=3, mlp_dim=10, max_length=5, projection_dim=4, pooled=pooled, layer=layer
    )
    products = layers * (4 * 5 * 6 * 6 + 2 * 5 * 5 * 6 + 2 * 5 * 6 * 10) + (6 * 4 if pooled else 0)
    assert text_encoder_forward(arch) == 2 * products


@pytest.mark.reference
@pytest.mark.slow
@pytest.mark.parametrize("name", ["sdxl-base", "tiny"])
def test_torch_counts_the_same_in_diffusers_network(name):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    from torch.utils.flop_counter import FlopCounterMode

    arch = TINY_SDXL.unet if name == "tiny" else KNOWN_UNETS[name]
    with torch.device("meta"):
        network = diffusers.UNet2DConditionModel(
            block_out_channels=arch.channels,
            layers_per_block=len(arch.down_depths[0]),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=[max(depths[0], 1) for depths in arch.down_depths],
            attention_head_dim=[width // 64 for width in arch.channels],
            norm_num_groups=arch.norm_groups,
            cross_attention_dim=arch.context_dim,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=arch.vector_dim,
        )
        inputs = torch.zeros(1, 4, 16, 24), torch.zeros(1), torch.zeros(1, 77, arch.context_dim)
        more = {"text_embeds": torch.zeros(1, arch.vector_dim - 6 * 256), "time_ids": torch.zeros(1, 6)}
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(*inputs, added_cond_kwargs=more)
    assert counter.get_total_flops() == unet_forward(arch, 16, 24)
