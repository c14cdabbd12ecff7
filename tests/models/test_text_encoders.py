"""The text towers against transformers, with the same random weights (DESIGN, promise 1)."""

from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops

from gm.data.tokens import Tokenizers
from gm.models.architecture import (
    OPEN_CLIP_BIG_G,
    SD_1_CLIP_L,
    SD_2_VIT_H,
    TINY_SDXL,
    ModelArchitecture,
    TextEncoderArchitecture,
)
from gm.models.build import build_conditioner

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.reference

TOLERANCE = 1e-4  # largest error, relative to the largest value
GRADIENT_TOLERANCE = 1e-3  # norm of the error of a parameter's gradient, relative to the gradient's

TOKENIZER = str(Path(__file__).parents[2] / "demo/tiny/tokenizer")
VOCABULARY = 99
# All layers of the released towers, narrow: one head of CLIP-L and bigG, two of ViT-H.
TOWERS = {
    "clip-l": replace(SD_1_CLIP_L, vocab_size=VOCABULARY, width=64, mlp_dim=128),
    "big-g": replace(OPEN_CLIP_BIG_G, vocab_size=VOCABULARY, width=64, mlp_dim=128, projection_dim=48),
    "vit-h": replace(SD_2_VIT_H, vocab_size=VOCABULARY, width=128, mlp_dim=192, projection_dim=128),
}
QKV = ("q_proj", "k_proj", "v_proj")


@pytest.fixture(autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)


def build(arch: ModelArchitecture, seed: int) -> nn.Cell:
    """Random towers, norms and biases too, so that leaving one out cannot go unseen."""
    conditioner = build_conditioner(arch, seed)
    rng = np.random.default_rng(seed + 1)
    for parameter in conditioner.get_parameters():
        if parameter.ndim == 1:
            noise = 0.2 * rng.normal(size=parameter.shape)
            parameter.set_data(ms.Tensor((parameter.asnumpy() + noise).astype(np.float32)))
    return conditioner


def token_ids(vocabulary: int, seed: int) -> np.ndarray:
    """Two texts, each ended by the highest id and filled up with lower ones."""
    ids = np.random.default_rng(seed).integers(0, vocabulary - 1, (2, 77)).astype(np.int32)
    for row, end in enumerate((9, 30)):
        ids[row, end], ids[row, end + 1 :] = vocabulary - 1, 0
    return ids


def in_transformers_words(name: str, value: np.ndarray) -> dict[str, np.ndarray]:
    """An open_clip tensor in transformers' names, written out here so that it does not depend on our layout rules."""
    table = {
        "token_embedding.weight": "embeddings.token_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight",
        "ln_final.weight": "final_layer_norm.weight",
        "ln_final.bias": "final_layer_norm.bias",
    }
    if name == "logit_scale":
        return {}
    if name == "text_projection":
        return {"text_projection.weight": value.T}
    if name in table:
        return {table[name]: value}
    _, _, layer, module, *rest = name.split(".")
    theirs = f"encoder.layers.{layer}"
    if rest[0].startswith("in_proj"):
        kind = rest[0].removeprefix("in_proj_")
        parts = np.split(value, 3)
        return {f"{theirs}.self_attn.{which}.{kind}": part for which, part in zip(QKV, parts)}
    inner = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn": "self_attn", "mlp": "mlp"}[module]
    last = ".".join(rest).replace("c_fc", "fc1").replace("c_proj", "fc2")
    return {f"{theirs}.{inner}.{last}": value}


def reference(arch: TextEncoderArchitecture, prefix: str, named: dict[str, np.ndarray]):
    """Transformers' model with the tensors under ``prefix``; its names without ``text_model.``."""
    config = transformers.CLIPTextConfig(
        vocab_size=arch.vocab_size,
        hidden_size=arch.width,
        intermediate_size=arch.mlp_dim,
        num_hidden_layers=arch.layers,
        num_attention_heads=arch.width // 64,
        hidden_act=arch.activation,
        projection_dim=arch.projection_dim or arch.width,
        eos_token_id=arch.vocab_size - 1,
        bos_token_id=arch.vocab_size - 2,
    )
    pooled = arch.layout == "open_clip"
    kind = transformers.CLIPTextModelWithProjection if pooled else transformers.CLIPTextModel
    theirs = kind(config).eval()
    weights = in_their_names(arch, prefix, named)
    names = {name.removeprefix("text_model."): name for name in theirs.state_dict()}
    assert names.keys() == weights.keys()
    theirs.load_state_dict({names[name]: torch.from_numpy(value.copy()) for name, value in weights.items()})
    return theirs


def in_their_names(arch, prefix: str, named: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    weights = {}
    for name, value in named.items():
        if name.startswith(prefix):
            if arch.layout == "open_clip":
                weights |= in_transformers_words(name.removeprefix(prefix + "model."), value)
            else:
                weights[name.removeprefix(prefix + "transformer.text_model.")] = value
    return weights


def values(cell: nn.Cell) -> dict[str, np.ndarray]:
    return {parameter.name: parameter.asnumpy() for parameter in cell.get_parameters()}


def assert_close(ours: ms.Tensor, theirs: "torch.Tensor", what: str = "") -> None:
    ours, theirs = ours.asnumpy(), theirs.detach().numpy()
    assert ours.shape == theirs.shape, what
    assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max(), what


class EveryState(nn.Cell):
    """The states of all layers of a tower, then what it returns of context and pooled state."""

    def __init__(self, embedder: nn.Cell):
        super().__init__(auto_prefix=False)
        self.embedder = embedder

    def construct(self, ids):
        states = self.embedder.hidden_states(ids)
        context, pooled = self.embedder.outputs(ids, states)
        return states + ((context,) if pooled is None else (context, pooled))


@pytest.mark.slow
@pytest.mark.parametrize("tower", TOWERS)
def test_every_layer_equals_transformers(tower):
    arch = TOWERS[tower]
    model = ModelArchitecture("sd-1", None, None, (arch,), 0)
    conditioner = build(model, seed=1)
    ids = token_ids(VOCABULARY, seed=2)
    found = EveryState(conditioner.embedders[0])(ms.Tensor(ids))
    states, (context, *pooled) = found[: arch.layers + 1], found[arch.layers + 1 :]
    theirs = reference(arch, model.text_prefixes[0], values(conditioner))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids).long(), output_hidden_states=True)
        norm = getattr(theirs, "text_model", theirs).final_layer_norm
    for layer, state in enumerate(expected.hidden_states):
        assert_close(states[layer], state, f"after layer {layer} of {arch.layers}")
    if tower == "clip-l":  # SD 1.x: what transformers calls the last hidden state
        assert_close(context, expected.last_hidden_state, "context")
    else:  # of SD 2.x the last but one, normed; of SDXL the same without the norm
        penultimate = expected.hidden_states[-2]
        assert_close(context, norm(penultimate) if tower == "vit-h" else penultimate, "context")
    assert len(pooled) == (1 if tower == "big-g" else 0)
    if tower == "big-g":
        assert_close(pooled[0], expected.text_embeds, "pooled")


@pytest.mark.parametrize("model", ["sdxl", "refiner", "sd-1", "sd-2"])
def test_every_models_conditioner_equals_transformers(model, families):
    arch = TINY_SDXL if model == "sdxl" else families[model]
    conditioner = build(arch, seed=3)
    towers = arch.text_encoders
    ids = [token_ids(tower.vocab_size, seed=4 + index) for index, tower in enumerate(towers)]
    context, *pooled = conditioner(*map(ms.Tensor, ids))
    states, projected = [], None
    for tower, prefix, tokens in zip(towers, arch.text_prefixes, ids):
        theirs = reference(tower, prefix, values(conditioner))
        output = theirs(torch.from_numpy(tokens).long(), output_hidden_states=True)
        norm = getattr(theirs, "text_model", theirs).final_layer_norm
        state = output.last_hidden_state if model == "sd-1" else output.hidden_states[-2]
        states.append(norm(state) if model == "sd-2" else state)
        projected = getattr(output, "text_embeds", None)
    assert_close(context, torch.cat(states, dim=-1))
    if model in ("sdxl", "refiner"):
        assert_close(*pooled, projected)
    else:
        assert not pooled


def test_long_texts_are_encoded_in_chunks_and_pooled_from_the_first():
    """Of what transformers makes of each 75 tokens on their own; the end fills CLIP-L's ids up and 0 bigG's."""
    conditioner = build(TINY_SDXL, seed=3)
    texts = ["a red circle on a blue square " * 15, "a red circle"]
    context, pooled = conditioner.encode(Tokenizers.load(TOKENIZER, chunks=2).encode(texts))
    codec = transformers.CLIPTokenizer.from_pretrained(TOKENIZER)
    start, end = codec.bos_token_id, codec.eos_token_id
    for text, states, vector in zip(texts, context, pooled):
        tokens = codec(text, add_special_tokens=False).input_ids
        assert (len(tokens) > 75) == (text is texts[0])
        expected = []
        for tower, prefix, pad in zip(TINY_SDXL.text_encoders, TINY_SDXL.text_prefixes, (end, 0)):
            theirs = reference(tower, prefix, values(conditioner))
            rows = [[start, *tokens[first : first + 75], end] for first in (0, 75)]
            ids = torch.tensor([row + [pad] * (77 - len(row)) for row in rows])
            output = theirs(ids, output_hidden_states=True)
            expected.append(output.hidden_states[-2].reshape(154, -1))
        assert_close(ms.Tensor(states), torch.cat(expected, dim=-1))
        assert_close(ms.Tensor(vector), output.text_embeds[0])


class Probe(nn.Cell):
    """A scalar with a different slope for every output, so that every gradient has to be right."""

    def __init__(self, conditioner: nn.Cell):
        super().__init__(auto_prefix=False)
        self.conditioner = conditioner

    def construct(self, context_slopes, pooled_slopes, ids_1, ids_2):
        context, pooled = self.conditioner(ids_1, ids_2)
        return (context * context_slopes).sum() + (pooled * pooled_slopes).sum()


class Gradients(nn.Cell):
    def __init__(self, conditioner: nn.Cell, trained: ms.ParameterTuple):
        super().__init__(auto_prefix=False)
        self.probe, self.trained = Probe(conditioner), trained
        self.gradients = ops.GradOperation(get_by_list=True)

    def construct(self, *inputs):
        return self.gradients(self.probe, self.trained)(*inputs)


def test_gradients_of_both_sdxl_towers_equal_transformers():
    conditioner = build(TINY_SDXL, seed=6)
    ids = [token_ids(tower.vocab_size, seed=7 + index) for index, tower in enumerate(TINY_SDXL.text_encoders)]
    rng = np.random.default_rng(9)
    context_slopes = rng.normal(size=(2, 77, 128)).astype(np.float32)
    pooled_slopes = rng.normal(size=(2, 64)).astype(np.float32)
    trained = ms.ParameterTuple(conditioner.trainable_params())
    inputs = [ms.Tensor(array) for array in (context_slopes, pooled_slopes, *ids)]
    gradients = Gradients(conditioner, trained)(*inputs)
    ours = {parameter.name: gradient.asnumpy() for parameter, gradient in zip(trained, gradients)}
    for index, (tower, prefix) in enumerate(zip(TINY_SDXL.text_encoders, TINY_SDXL.text_prefixes)):
        theirs = reference(tower, prefix, values(conditioner))
        output = theirs(torch.from_numpy(ids[index]).long(), output_hidden_states=True)
        slopes = torch.from_numpy(np.split(context_slopes, 2, axis=-1)[index])
        scalar = (output.hidden_states[-2] * slopes).sum()
        if tower.pooled:
            scalar = scalar + (output.text_embeds * torch.from_numpy(pooled_slopes)).sum()
        scalar.backward()
        found = in_their_names(tower, prefix, ours)
        expected = {
            name.removeprefix("text_model."): parameter.grad.numpy()
            for name, parameter in theirs.named_parameters()
            if parameter.grad is not None
        }
        assert len(expected) > 16  # a layer and the embeddings at least
        # A key's bias has no gradient at all (softmax ignores it): what is computed there is rounding.
        rounding = 1e-6 * max(np.linalg.norm(gradient) for gradient in expected.values())
        for name, gradient in expected.items():
            error = np.linalg.norm(found[name] - gradient)
            assert error <= GRADIENT_TOLERANCE * np.linalg.norm(gradient) + rounding, f"{prefix}{name}"
