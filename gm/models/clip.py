"""A whole CLIP, texts and pictures in one space (Radford et al. 2021, arXiv 2103.00020); keys of transformers.

The text tower is the one that SDXL is conditioned on (``gm.models.text_encoders``), here to its projected end.
"""

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from gm.compilation import Graph
from gm.models.architecture import CLIPArchitecture, VisionEncoderArchitecture
from gm.models.layers import Embedding, Initializer, LayerNorm, Projection
from gm.models.text_encoders import CLIPEncoder, CLIPTextModel


class PatchEmbedding(nn.Cell):
    """(B, 3, H, W) -> (B, patches, width): a convolution whose stride is its kernel, as a product with the patches."""

    def __init__(self, arch: VisionEncoderArchitecture):
        super().__init__()
        self.patch, self.width = arch.patch_size, arch.width
        inputs = 3 * arch.patch_size**2
        self.weight = Initializer.uniform((arch.width, 3, arch.patch_size, arch.patch_size), inputs)

    def construct(self, pictures: Tensor) -> Tensor:
        batch, channels, height, width = pictures.shape
        rows, columns = height // self.patch, width // self.patch
        patches = pictures.reshape(batch, channels, rows, self.patch, columns, self.patch)
        patches = patches.transpose(0, 2, 4, 1, 3, 5).reshape(batch * rows * columns, -1)
        out = ops.matmul(patches, self.weight.reshape(self.width, -1).T)
        return out.reshape(batch, rows * columns, self.width)


class VisionEmbeddings(nn.Cell):
    """A learned state, then the patches, each with its position: (B, 3, H, W) -> (B, 1 + patches, width)."""

    def __init__(self, arch: VisionEncoderArchitecture):
        super().__init__()
        self.class_embedding = Initializer.normal((arch.width,), std=arch.width**-0.5)
        self.patch_embedding = PatchEmbedding(arch)
        self.position_embedding = Embedding(1 + arch.patches, arch.width)
        self.width = arch.width

    def construct(self, pictures: Tensor) -> Tensor:
        first = ops.broadcast_to(self.class_embedding, (pictures.shape[0], 1, self.width))
        return ops.concat((first, self.patch_embedding(pictures)), axis=1) + self.position_embedding.weight


class CLIPVisionModel(nn.Cell):
    """``vision_model``: pictures (B, 3, H, W) -> the normed last state of the learned one, (B, width)."""

    def __init__(self, arch: VisionEncoderArchitecture):
        super().__init__()
        self.embeddings = VisionEmbeddings(arch)
        self.pre_layrnorm = LayerNorm(arch.width)  # spelt so in every file
        self.encoder = CLIPEncoder(arch, causal=False)
        self.post_layernorm = LayerNorm(arch.width)

    def construct(self, pictures: Tensor) -> Tensor:
        states = self.encoder(self.pre_layrnorm(self.embeddings(pictures)))
        return self.post_layernorm(states[-1][:, 0])


class CLIP(nn.Cell):
    """Both towers with their projections. ``embed_texts`` and ``embed_pictures`` return unit vectors (B, P).

    The cosine of two of them, times exp(``logit_scale``), is the logit that CLIP was trained with.
    """

    def __init__(self, arch: CLIPArchitecture):
        super().__init__()
        self.text_model = CLIPTextModel(arch.text)
        self.text_projection = Projection(arch.text.width, arch.text.projection_dim)
        self.vision_model = CLIPVisionModel(arch.vision)
        self.visual_projection = Projection(arch.vision.width, arch.text.projection_dim)
        self.logit_scale = Parameter(Tensor(np.float32(np.log(1 / 0.07))), requires_grad=False)

    def embed_texts(self, ids: Tensor) -> Tensor:
        """Token ids (B, 77) int32; the state at the end of text, which has the highest id, stands for all of it."""
        last = self.text_model.final_layer_norm(self.text_model(ids)[-1])
        return unit(self.text_projection(last[ops.arange(ids.shape[0]), ids.argmax(axis=-1)]))

    def embed_pictures(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, side, side), prepared as ``gm.evaluation.clip_score.prepare`` does."""
        return unit(self.visual_projection(self.vision_model(pictures)))


def unit(x: Tensor) -> Tensor:
    """Rows (B, P) divided by their length."""
    return x / ops.sqrt((x * x).sum(-1, keepdims=True))


class CLIPTexts(Graph):
    """``CLIP.embed_texts``, compiled."""

    def __init__(self, clip: CLIP):
        super().__init__(auto_prefix=False)
        self.clip = clip

    def construct(self, ids: Tensor) -> Tensor:
        return self.clip.embed_texts(ids)


class CLIPPictures(Graph):
    """``CLIP.embed_pictures``, compiled."""

    def __init__(self, clip: CLIP):
        super().__init__(auto_prefix=False)
        self.clip = clip

    def construct(self, pictures: Tensor) -> Tensor:
        return self.clip.embed_pictures(pictures)
