"""What SDXL is conditioned on: the states of two text towers, the pooled text, and six numbers about the picture."""

from mindspore import Tensor, nn, ops

from gm.models.architecture import TextEncoderArchitecture
from gm.models.layers import sinusoidal_embedding
from gm.models.text_encoders import CLIPTextEncoder, OpenCLIPTextEncoder

SIZE_EMBEDDING_WIDTH = 256


def size_embedding(time_ids: Tensor) -> Tensor:
    """Embed each of the numbers (B, N) on its own and join them -> (B, N * 256).

    The numbers are original height and width, crop top and left, target height and width, in pixels (Podell et al.
    2023, section 2.2).
    """
    batch = time_ids.shape[0]
    return sinusoidal_embedding(time_ids.reshape(-1), SIZE_EMBEDDING_WIDTH).reshape(batch, -1)


def conditioning_vector(pooled: Tensor, time_ids: Tensor) -> Tensor:
    """The UNet's ``vector``: pooled text (B, P) joined with the embedded size numbers (B, N) -> (B, P + N * 256)."""
    return ops.concat((pooled, size_embedding(time_ids).astype(pooled.dtype)), axis=1)


class TextConditioner(nn.Cell):
    """Both text towers of SDXL.

    ``construct(ids_1 (B, 77), ids_2 (B, 77))`` returns ``context`` (B, 77, width_1 + width_2) and ``pooled`` (B, P).
    """

    def __init__(self, architectures: tuple[TextEncoderArchitecture, ...]):
        super().__init__()
        clip, open_clip = architectures
        self.embedders = nn.CellList([CLIPTextEncoder(clip), OpenCLIPTextEncoder(open_clip)])

    def construct(self, ids_1: Tensor, ids_2: Tensor) -> tuple[Tensor, Tensor]:
        first = self.embedders[0](ids_1)
        second, pooled = self.embedders[1](ids_2)
        return ops.concat((first, second), axis=-1), pooled
