"""What a UNet is conditioned on: the states of its text towers, the pooled text, and numbers about the picture."""

from mindspore import Tensor, nn, ops

from gm.models.architecture import TextEncoderArchitecture
from gm.models.layers import sinusoidal_embedding
from gm.models.text_encoders import build_text_encoder

SIZE_EMBEDDING_WIDTH = 256


def size_embedding(time_ids: Tensor) -> Tensor:
    """Embed each of the numbers (B, N) on its own and join them -> (B, N * 256).

    The six numbers of SDXL base are original height and width, crop top and left, target height and width, in pixels
    (Podell et al. 2023, section 2.2); the five of its refiner end in an aesthetic score instead of the target.
    """
    batch = time_ids.shape[0]
    return sinusoidal_embedding(time_ids.reshape(-1), SIZE_EMBEDDING_WIDTH).reshape(batch, -1)


def conditioning_vector(pooled: Tensor, time_ids: Tensor) -> Tensor:
    """The UNet's ``vector``: pooled text (B, P) joined with the embedded size numbers (B, N) -> (B, P + N * 256)."""
    return ops.concat((pooled, size_embedding(time_ids).astype(pooled.dtype)), axis=1)


class TextConditioner(nn.Cell):
    """The text towers of a model: two (SDXL base), or one (its refiner, SD 1.x, SD 2.x).

    ``construct`` takes token ids (B, 77) for each tower and returns ``context`` (B, 77, sum of the widths) and
    ``pooled`` (B, P), None where no tower has a pooled state.
    """

    def __init__(self, architectures: tuple[TextEncoderArchitecture, ...]):
        super().__init__()
        self.embedders = nn.CellList([build_text_encoder(architecture) for architecture in architectures])
        self.towers = len(architectures)

    def construct(self, *ids: Tensor) -> tuple[Tensor, Tensor | None]:
        contexts, pooled = (), None
        for index in range(self.towers):
            context, projected = self.embedders[index](ids[index])
            contexts = contexts + (context,)
            if projected is not None:
                pooled = projected
        return contexts[0] if self.towers == 1 else ops.concat(contexts, axis=-1), pooled
