"""The CLIP text towers: OpenAI's CLIP-L (keys as in transformers) and OpenCLIP ViT-bigG/ViT-H (keys as in open_clip).

Both return the states SDXL conditions on (Podell et al. 2023, section 2.1): the output of the last but one layer,
without the final norm; the open_clip tower returns its pooled projection as well.
"""

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from gm.models.architecture import HEAD_WIDTH, TextEncoderArchitecture
from gm.models.attention import MultiHeadAttention
from gm.models.layers import Embedding, Initializer, LayerNorm, Linear, gelu, quick_gelu


class Activation(nn.Cell):
    """The activation a tower was trained with: "gelu" or "quick_gelu"."""

    def __init__(self, name: str):
        super().__init__()
        self.quick = name == "quick_gelu"

    def construct(self, x: Tensor) -> Tensor:
        return quick_gelu(x) if self.quick else gelu(x)


class CLIPAttention(nn.Cell):
    """Causal self-attention, names of transformers."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.k_proj = Linear(width, width)
        self.v_proj = Linear(width, width)
        self.q_proj = Linear(width, width)
        self.out_proj = Linear(width, width)
        self.attention = MultiHeadAttention(heads, HEAD_WIDTH, causal=True)

    def construct(self, x: Tensor) -> Tensor:
        return self.out_proj(self.attention(self.q_proj(x), self.k_proj(x), self.v_proj(x)))


class CLIPMLP(nn.Cell):
    """Two linear layers, names of transformers."""

    def __init__(self, arch: TextEncoderArchitecture):
        super().__init__()
        self.fc1 = Linear(arch.width, arch.mlp_dim)
        self.fc2 = Linear(arch.mlp_dim, arch.width)
        self.activation = Activation(arch.activation)

    def construct(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class CLIPLayer(nn.Cell):
    """One pre-norm transformer layer, names of transformers."""

    def __init__(self, arch: TextEncoderArchitecture):
        super().__init__()
        self.self_attn = CLIPAttention(arch.width, arch.heads)
        self.layer_norm1 = LayerNorm(arch.width)
        self.mlp = CLIPMLP(arch)
        self.layer_norm2 = LayerNorm(arch.width)

    def construct(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class CLIPEmbeddings(nn.Cell):
    """Token plus position: (B, N) int -> (B, N, width)."""

    def __init__(self, arch: TextEncoderArchitecture):
        super().__init__()
        self.token_embedding = Embedding(arch.vocab_size, arch.width)
        self.position_embedding = Embedding(arch.max_length, arch.width)

    def construct(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


class CLIPEncoder(nn.Cell):
    """The stack of layers; returns the output of the last but one and of the last."""

    def __init__(self, arch: TextEncoderArchitecture):
        super().__init__()
        self.layers = nn.CellList([CLIPLayer(arch) for _ in range(arch.layers)])
        self.last = arch.layers - 1

    def construct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for index in range(self.last):
            x = self.layers[index](x)
        return x, self.layers[self.last](x)


class CLIPTextModel(nn.Cell):
    """``text_model`` of transformers' CLIPTextModel."""

    def __init__(self, arch: TextEncoderArchitecture):
        super().__init__()
        self.embeddings = CLIPEmbeddings(arch)
        self.encoder = CLIPEncoder(arch)
        self.final_layer_norm = LayerNorm(arch.width)

    def construct(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids (B, N) -> last but one states and final normed states, each (B, N, width)."""
        penultimate, last = self.encoder(self.embeddings(ids))
        return penultimate, self.final_layer_norm(last)


class Transformer(nn.Cell):
    """The ``transformer`` level of the original keys."""

    def __init__(self, arch: TextEncoderArchitecture):
        super().__init__()
        self.text_model = CLIPTextModel(arch)

    def construct(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.text_model(ids)


class CLIPTextEncoder(nn.Cell):
    """CLIP-L as an embedder of the conditioner: token ids (B, N) -> last but one states (B, N, width)."""

    def __init__(self, arch: TextEncoderArchitecture):
        super().__init__()
        self.transformer = Transformer(arch)

    def construct(self, ids: Tensor) -> Tensor:
        return self.transformer(ids)[0]


class OpenCLIPAttention(nn.Cell):
    """Causal self-attention with one fused projection, names of torch's MultiheadAttention."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.in_proj_weight = Initializer.uniform((3 * width, width), width)
        self.in_proj_bias = Initializer.uniform((3 * width,), width)
        self.out_proj = Linear(width, width)
        self.attention = MultiHeadAttention(heads, HEAD_WIDTH, causal=True)
        self.width = width

    def construct(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        fused = ops.matmul(x.reshape(batch * length, width), self.in_proj_weight.T) + self.in_proj_bias
        query, key, value = ops.split(fused.reshape(batch, length, 3 * width), self.width, axis=-1)
        return self.out_proj(self.attention(query, key, value))


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
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class OpenCLIPTransformer(nn.Cell):
    """The stack of layers; returns the output of the last but one and of the last."""

    def __init__(self, arch: TextEncoderArchitecture):
        super().__init__()
        self.resblocks = nn.CellList([OpenCLIPLayer(arch) for _ in range(arch.layers)])
        self.last = arch.layers - 1

    def construct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for index in range(self.last):
            x = self.resblocks[index](x)
        return x, self.resblocks[self.last](x)


class OpenCLIPTextModel(nn.Cell):
    """``model`` of an open_clip checkpoint, text side only."""

    def __init__(self, arch: TextEncoderArchitecture):
        super().__init__()
        self.token_embedding = Embedding(arch.vocab_size, arch.width)
        self.positional_embedding = Initializer.normal((arch.max_length, arch.width), std=0.01)
        self.transformer = OpenCLIPTransformer(arch)
        self.ln_final = LayerNorm(arch.width)
        self.text_projection = Initializer.uniform((arch.width, arch.projection_dim), arch.width)
        # Part of the checkpoint, used only for CLIP's contrastive loss.
        self.logit_scale = Parameter(Tensor(np.float32(np.log(1 / 0.07))), requires_grad=False)

    def construct(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids (B, N) -> last but one states (B, N, width) and pooled projection (B, projection)."""
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        penultimate, last = self.transformer(x)
        # The end-of-text token has the highest id; its state stands for the text.
        rows = ops.arange(ids.shape[0])
        end = self.ln_final(last)[rows, ids.argmax(axis=-1)]
        return penultimate, ops.matmul(end, self.text_projection)


class OpenCLIPTextEncoder(nn.Cell):
    """ViT-bigG or ViT-H as an embedder of the conditioner: token ids (B, N) -> states (B, N, width), pooled (B, P)."""

    def __init__(self, arch: TextEncoderArchitecture):
        super().__init__()
        self.model = OpenCLIPTextModel(arch)

    def construct(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.model(ids)
