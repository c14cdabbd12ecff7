"""A whole CLIP against transformers' CLIPModel with the same random weights."""

from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from gm.models.architecture import CLIP_L, VisionEncoderArchitecture
from gm.models.build import build_clip
from gm.models.clip import CLIPPictures, CLIPTexts
from gm.weights.clip import detect_clip, open_clip_model
from gm.weights.load import load_into

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.reference

TOLERANCE = 1e-4  # largest error, relative to the largest value
VOCABULARY = 99


def configuration(activation: str, width: int, heads: int, side: int = 48, patch: int = 16):
    text = {"vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3}
    text |= {"num_attention_heads": 2, "hidden_act": activation, "eos_token_id": VOCABULARY - 1, "bos_token_id": 1}
    vision = {"hidden_size": width, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": heads}
    vision |= {"hidden_act": activation, "image_size": side, "patch_size": patch}
    return transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=40)


@pytest.fixture(autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)


# OpenAI's towers have heads 64 wide; those of bigG's pictures are 104 wide, those of ViT-H's 80.
@pytest.mark.parametrize(("activation", "width", "heads"), [("quick_gelu", 128, 2), ("gelu", 104, 1)])
def test_embeddings_and_logits_equal_transformers(tmp_path, activation, width, heads):
    torch.manual_seed(0)
    theirs = transformers.CLIPModel(configuration(activation, width, heads)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # norms and biases too, so that leaving one out cannot go unseen
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    architecture, weights = open_clip_model(tmp_path)
    assert (architecture.vision.heads, architecture.vision.activation) == (heads, activation)
    with weights:
        clip = build_clip(architecture)
        load_into(clip, weights)
    rng = np.random.default_rng(1)
    pictures = rng.normal(size=(3, 3, 48, 48)).astype(np.float32)
    ids = rng.integers(2, VOCABULARY - 1, (2, 77)).astype(np.int32)
    ids[0, 9:], ids[1, 30:] = VOCABULARY - 1, VOCABULARY - 1
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids).long(), torch.from_numpy(pictures))
    texts = CLIPTexts(clip)(Tensor(ids)).asnumpy()
    shown = CLIPPictures(clip)(Tensor(pictures)).asnumpy()
    logits = shown @ texts.T * np.exp(clip.logit_scale.asnumpy())
    for ours, other in (
        (texts, expected.text_embeds),
        (shown, expected.image_embeds),
        (logits, expected.logits_per_image),
    ):
        assert ours.shape == other.shape
        assert np.abs(ours - other.numpy()).max() <= TOLERANCE * np.abs(other.numpy()).max()


BIG = {
    "openai/clip-vit-large-patch14": ({"num_attention_heads": 12, "hidden_size": 768}, 3072, 1024, 24, 16, 14, 768),
    "openai/clip-vit-base-patch32": ({"num_attention_heads": 8, "hidden_size": 512}, 2048, 768, 12, 12, 32, 512),
    "laion/CLIP-ViT-bigG-14": (
        {"num_attention_heads": 20, "hidden_size": 1280, "num_hidden_layers": 32, "hidden_act": "gelu"},
        *(5120, 1664, 48, 16, 14, 1280),
    ),
}


@pytest.mark.parametrize("name", BIG)
def test_every_parameter_of_the_full_size_models_has_its_name_and_shape(name):
    text, text_mlp, width, layers, heads, patch, projection = BIG[name]
    text = {**text, "intermediate_size": text_mlp}
    vision = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "patch_size": patch}
    vision |= {
        "intermediate_size": {1664: 8192}.get(width, 4 * width),
        "hidden_act": text.get("hidden_act", "quick_gelu"),
    }
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)
    with torch.device("meta"):
        theirs = transformers.CLIPModel(config)
    shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    architecture = detect_clip(shapes, config.to_dict())
    ours = {parameter.name: tuple(parameter.shape) for parameter in build_clip(architecture).get_parameters()}
    assert ours == shapes
    if width == 1024:
        assert architecture.text == replace(CLIP_L, projection_dim=768)
    assert architecture.vision == VisionEncoderArchitecture(
        width, layers, vision["intermediate_size"], heads, patch, 224, vision["hidden_act"]
    )
