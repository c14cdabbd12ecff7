"""Original and diffusers names, there and back, for every model of the family at full size and without its weights."""

import numpy as np
import pytest

from gm.errors import SuiteError
from gm.weights import diffusers_config, layouts
from gm.weights.keys import autoencoder_shapes, text_encoder_shapes, unet_shapes
from gm.weights.layouts import LOGIT_SCALE, Renaming
from gm.weights.sources import ArraySource


def hollow(pairs) -> dict:
    """Tensors of these shapes that take no memory."""
    return {name: ArraySource(np.broadcast_to(np.float32(0), shape), "F32") for name, shape in pairs}


def shapes(sources) -> dict:
    return {name: source.shape for name, source in sources.items()}


def test_unet_names_there_and_back(model):
    original = hollow(unet_shapes(model.unet))
    theirs = layouts.unet_to_diffusers(original, model.unet)
    assert len(theirs) == len(original)
    assert shapes(layouts.unet_from_diffusers(theirs)) == shapes(original)


def test_autoencoder_names_there_and_back(model):
    original = hollow(autoencoder_shapes(model.autoencoder))
    theirs = layouts.autoencoder_to_diffusers(original, model.autoencoder)
    assert len(theirs) == len(original)
    assert theirs["encoder.mid_block.attentions.0.to_q.weight"].shape == (model.autoencoder.channels[-1],) * 2
    assert shapes(layouts.autoencoder_from_diffusers(theirs)) == shapes(original)


def test_text_names_there_and_back(model):
    encoder = model.text_encoders[-1]
    if encoder.layout == "transformers":
        pytest.skip("the names are the same in both layouts")
    original = hollow(text_encoder_shapes(encoder))
    theirs = layouts.open_clip_to_diffusers(original, encoder.layers, projection=True)
    assert shapes(layouts.open_clip_from_diffusers(theirs)) == shapes(original)


def test_values_of_a_text_encoder_there_and_back(tiny_tensors):
    prefix = "conditioner.embedders.1.model."
    original = {
        name.removeprefix(prefix): ArraySource(array, tag)
        for name, (_, tag, array) in tiny_tensors.items()
        if name.startswith(prefix)
    }
    theirs = layouts.open_clip_to_diffusers(original, 2, projection=True)
    fused = original["transformer.resblocks.1.attn.in_proj_weight"].read()
    np.testing.assert_array_equal(theirs["text_model.encoder.layers.1.self_attn.k_proj.weight"].read(), fused[64:128])
    np.testing.assert_array_equal(theirs["text_projection.weight"].read(), original["text_projection"].read().T)
    back = layouts.open_clip_from_diffusers(theirs)
    for name, source in original.items():
        expected = LOGIT_SCALE if name == "logit_scale" else source.read()
        np.testing.assert_array_equal(back[name].read(), expected)
        streamed = np.concatenate([chunk.copy() for chunk in back[name].stream()])
        np.testing.assert_array_equal(streamed, np.reshape(expected, -1))


def test_autoencoders_of_before_2023_are_read(tiny_tensors, model):
    original = hollow(autoencoder_shapes(model.autoencoder))
    theirs = layouts.autoencoder_to_diffusers(original, model.autoencoder)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new_name, old_name in old.items():
        theirs = {name.replace(f".{new_name}.", f".{old_name}."): source for name, source in theirs.items()}
    assert any(".proj_attn." in name for name in theirs)
    assert shapes(layouts.autoencoder_from_diffusers(theirs)) == shapes(original)


def test_a_name_without_a_rule_is_told():
    with pytest.raises(SuiteError, match=r"down_blocks.0.motion.weight has no place"):
        layouts.unet_from_diffusers(hollow([("down_blocks.0.motion.weight", (1,))]))


def test_a_renaming_applies_to_whole_levels():
    rules = Renaming([("a.1", "b"), ("a.1.x", "c")])
    assert rules.to_diffusers("a.1.weight") == "b.weight"
    assert rules.to_diffusers("a.1.x.bias") == "c.bias"
    assert rules.to_diffusers("a.10.weight") is None
    assert rules.to_original("c.bias") == "a.1.x.bias"


def test_what_diffusers_cannot_describe_is_told(model_name, model):
    if model_name != "uneven":
        assert diffusers_config.unet_config(model.unet)["cross_attention_dim"] == model.unet.context_dim
        return
    with pytest.raises(SuiteError, match=r"keep this model as .ckpt"):
        diffusers_config.unet_config(model.unet)


@pytest.mark.reference
def test_every_key_and_shape_is_that_of_diffusers(model_name, model):
    """The networks diffusers builds from our configurations have exactly the parameters we would write."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    if model_name == "uneven":
        pytest.skip("diffusers cannot describe it")

    def built(make) -> dict:
        with torch.device("meta"):
            return {name: tuple(value.shape) for name, value in make().state_dict().items()}

    unet = layouts.unet_to_diffusers(hollow(unet_shapes(model.unet)), model.unet)
    config = diffusers_config.unet_config(model.unet)
    assert built(lambda: diffusers.UNet2DConditionModel.from_config(config)) == shapes(unet)
    autoencoder = layouts.autoencoder_to_diffusers(hollow(autoencoder_shapes(model.autoencoder)), model.autoencoder)
    config = diffusers_config.autoencoder_config(model.autoencoder, 512)
    assert built(lambda: diffusers.AutoencoderKL.from_config(config)) == shapes(autoencoder)
