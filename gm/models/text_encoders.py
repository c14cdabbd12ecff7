"""The CLIP text towers: OpenAI's CLIP-L (keys as in transformers) and OpenCLIP ViT-bigG/ViT-H (keys as in open_clip).

SDXL is conditioned on the output of the last but one layer, without the final norm (Podell et al. 2023, section 2.1),
and on the pooled projection of bigG; SD 1.x on the normed output of the last layer of CLIP-L; SD 2.x on the normed
output of the last but one layer of ViT-H. What a model takes is data of its ``TextEncoderArchitecture``.
"""

import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.ops import operations as P

from gm.models.architecture import HEAD_WIDTH, TextEncoderArchitecture, VisionEncoderArchitecture
from gm.models.attention import MultiHeadAttention
from gm.models.layers import Embedding, Initializer, LayerNorm, Linear, Projection, gelu, quick_gelu


class Activation(nn.Cell):
    """The activation a tower was trained with: "gelu" or "quick_gelu"."""

    def __init__(self, name: str):
        super().__init__()
        self.quick = name == "quick_gelu"

    def construct(self, x: Tensor) -> Tensor:
        return quick_gelu(x) if self.quick else gelu(x)


class CLIPAttention(nn.Cell):
    """Self-attention of rows (B * N, width), names of transformers."""

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        self.k_proj = Linear(width, width)
        self.v_proj = Linear(width, width)
        self.q_proj = Linear(width, width)
        self.out_proj = Linear(width, width)
        self.attention = MultiHeadAttention(heads, width // heads, causal)

    def construct(self, x: Tensor, batch: int) -> Tensor:
        return self.out_proj(self.attention(self.q_proj(x), self.k_proj(x), self.v_proj(x), batch))


class CLIPMLP(nn.Cell):
    """Two linear layers, names of transformers."""

    def __init__(self, arch: TextEncoderArchitecture | VisionEncoderArchitecture):
        super().__init__()
        self.fc1 = Linear(arch.width, arch.mlp_dim)
        self.fc2 = Linear(arch.mlp_dim, arch.width)
        self.activation = Activation(arch.activation)

    def construct(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class CLIPLayer(nn.Cell):
    """One pre-norm transformer layer, names of transformers."""

    def __init__(self, arch: TextEncoderArchitecture | VisionEncoderArchitecture, causal: bool):
        super().__init__()
        self.self_attn = CLIPAttention(arch.width, arch.heads, causal)
        self.layer_norm1 = LayerNorm(arch.width)
        self.mlp = CLIPMLP(arch)
        self.layer_norm2 = LayerNorm(arch.width)

    def construct(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[2])
        rows = rows + self.self_attn(self.layer_norm1(rows), x.shape[0])
        return (rows + self.mlp(self.layer_norm2(rows))).reshape(x.shape)


class CLIPEmbeddings(nn.Cell):
    """Token plus position: (B, N) int -> (B, N, width)."""

    def __init__(self, arch: TextEncoderArchitecture):
        super().__init__()
        self.token_embedding = Embedding(arch.vocab_size, arch.width)
        self.position_embedding = Embedding(arch.max_length, arch.width)

    def construct(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


class CLIPEncoder(nn.Cell):
    """The stack of layers; returns its input and the output of each layer."""

    def __init__(self, arch: TextEncoderArchitecture | VisionEncoderArchitecture, causal: bool = True):
        super().__init__()
        self.layers = nn.CellList([CLIPLayer(arch, causal) for _ in range(arch.layers)])

    def construct(self, x: Tensor) -> tuple[Tensor, ...]:
        states = (x,)
        for layer in self.layers:
            x = layer(x)
            states = states + (x,)
        return states


class CLIPTextModel(nn.Cell):
    """``text_model`` of transformers' CLIPTextModel."""

    def __init__(self, arch: TextEncoderArchitecture):
        super().__init__()
        self.embeddings = CLIPEmbeddings(arch)
        self.encoder = CLIPEncoder(arch)
        self.final_layer_norm = LayerNorm(arch.width)

    def construct(self, ids: Tensor) -> tuple[Tensor, ...]:
        return self.encoder(self.embeddings(ids))


class Transformer(nn.Cell):
    """The ``transformer`` level of the original keys."""

    def __init__(self, arch: TextEncoderArchitecture):
        super().__init__()
        self.text_model = CLIPTextModel(arch)
        if arch.projection_dim is not None:  # part of some files; no model of the family uses it
            self.text_projection = Projection(arch.width, arch.projection_dim)


class CLIPTextEncoder(nn.Cell):
    """CLIP-L as an embedder of the conditioner; what it returns is said at ``build_text_encoder``."""

    def __init__(self, arch: TextEncoderArchitecture):
        super().__init__()
        self.transformer = Transformer(arch)
        self.layers_below, self.final_norm = arch.layers_below, arch.final_norm

    def construct(self, ids: Tensor) -> tuple[Tensor, None]:
        return self.outputs(ids, self.hidden_states(ids))

    def hidden_states(self, ids: Tensor) -> tuple[Tensor, ...]:
        """The embedded tokens and the output of each layer, (B, N, width) all of them."""
        return self.transformer.text_model(ids)

    def outputs(self, ids: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, None]:
        context = states[self.layers_below]
        return self.transformer.text_model.final_layer_norm(context) if self.final_norm else context, None

    def idle_params(self) -> list[Parameter]:
        """Those no output depends on."""
        model = self.transformer.text_model
        idle = list(model.encoder.layers)[self.layers_below :]
        if not self.final_norm:
            idle.append(model.final_layer_norm)
        if hasattr(self.transformer, "text_projection"):
            idle.append(self.transformer.text_projection)
        return [parameter for cell in idle for parameter in cell.get_parameters()]


class OpenCLIPAttention(nn.Cell):
    """Causal self-attention of rows (B * N, width), one fused projection; names of torch's MultiheadAttention."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.in_proj_weight = Initializer.uniform((3 * width, width), width)
        self.in_proj_bias = Initializer.uniform((3 * width,), width)
        self.out_proj = Linear(width, width)
        self.attention = MultiHeadAttention(heads, HEAD_WIDTH, causal=True)
        self.matmul = P.MatMul(transpose_b=True)
        self.bias_add = P.BiasAdd()
        self.split = P.Split(-1, 3)

    def construct(self, x: Tensor, batch: int) -> Tensor:
        fused = self.bias_add(self.matmul(x, self.in_proj_weight), self.in_proj_bias)
        query, key, value = self.split(fused)
        return self.out_proj(self.attention(query, key, value, batch))


class OpenCLIPMLP(nn.Cell):
    """Two linear layers, names of open_clip."""

    def __init__(self, arch: TextEncoderArchitecture):
        super().__init__()
        self.c_fc = Linear(arch.width, arch.mlp_dim)
        self.c_proj = Linear(arch.mlp_dim, arch.width)
        self.activation = Activation(arch.activation)

    def construct(self, x: Tensor) -> Tensor:
        return self.c_proj(self.activation(self.c_fc(x)))


class OpenCLIPLayer(nn.Cell):
    """One pre-norm transformer layer, names of open_clip."""

    def __init__(self, arch: TextEncoderArchitecture):
        super().__init__()
        self.ln_1 = LayerNorm(arch.width)
        self.attn = OpenCLIPAttention(arch.width, arch.heads)
        self.ln_2 = LayerNorm(arch.width)
        self.mlp = OpenCLIPMLP(arch)

    def construct(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[2])
        rows = rows + self.attn(self.ln_1(rows), x.shape[0])
        return (rows + self.mlp(self.ln_2(rows))).reshape(x.shape)


class OpenCLIPTransformer(nn.Cell):
    """The stack of layers; returns its input and the output of each layer."""

    def __init__(self, arch: TextEncoderArchitecture):
        super().__init__()
        self.resblocks = nn.CellList([OpenCLIPLayer(arch) for _ in range(arch.layers)])

    def construct(self, x: Tensor) -> tuple[Tensor, ...]:
        states = (x,)
        for block in self.resblocks:
            x = block(x)
            states = states + (x,)
        return states


class OpenCLIPTextModel(nn.Cell):
    """``model`` of an open_clip checkpoint, text side only."""

    def __init__(self, arch: TextEncoderArchitecture):
        super().__init__()
        self.token_embedding = Embedding(arch.vocab_size, arch.width)
        self.positional_embedding = Initializer.normal((arch.max_length, arch.width), std=0.01)
        self.transformer = OpenCLIPTransformer(arch)
        self.ln_final = LayerNorm(arch.width)
        if arch.projection_dim is not None:
            self.text_projection = Initializer.uniform((arch.width, arch.projection_dim), arch.width)
        # Part of the checkpoint, used only for CLIP's contrastive loss.
        self.logit_scale = Parameter(Tensor(np.float32(np.log(1 / 0.07))), requires_grad=False)

    def construct(self, ids: Tensor) -> tuple[Tensor, ...]:
        return self.transformer(self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]])

    def pool(self, ids: Tensor, last: Tensor) -> Tensor:
        """The projected state of the end of text, which has the highest id: (B, projection)."""
        rows = ops.arange(ids.shape[0])
        return ops.matmul(self.ln_final(last)[rows, ids.argmax(axis=-1)], self.text_projection)


class OpenCLIPTextEncoder(nn.Cell):
    """ViT-bigG or ViT-H as an embedder of the conditioner; what it returns is said at ``build_text_encoder``."""

    def __init__(self, arch: TextEncoderArchitecture):
        super().__init__()
        self.model = OpenCLIPTextModel(arch)
        self.layers_below, self.final_norm, self.pooled = arch.layers_below, arch.final_norm, arch.pooled

    def construct(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.outputs(ids, self.hidden_states(ids))

    def hidden_states(self, ids: Tensor) -> tuple[Tensor, ...]:
        """The embedded tokens and the output of each layer, (B, N, width) all of them."""
        return self.model(ids)

    def outputs(self, ids: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        context = states[self.layers_below]
        pooled = self.model.pool(ids, states[-1]) if self.pooled else None
        return self.model.ln_final(context) if self.final_norm else context, pooled

    def idle_params(self) -> list[Parameter]:
        """Those no output depends on."""
        model = self.model
        if self.pooled:
            return [model.logit_scale]
        idle = list(model.transformer.resblocks)[self.layers_below :]
        if not self.final_norm:
            idle.append(model.ln_final)
        projection = [model.text_projection] if hasattr(model, "text_projection") else []
        return [model.logit_scale, *projection, *(one for cell in idle for one in cell.get_parameters())]


def build_text_encoder(arch: TextEncoderArchitecture) -> CLIPTextEncoder | OpenCLIPTextEncoder:
    """A Cell from token ids (B, N) to what the architecture says a model takes from this tower.

    It returns the states (B, N, width) of ``arch.layer``, normed with ``arch.final_norm``, and the pooled projection
    (B, P), None without ``arch.pooled``.
    """
    return CLIPTextEncoder(arch) if arch.layout == "transformers" else OpenCLIPTextEncoder(arch)
