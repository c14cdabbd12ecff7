"""What a UNet is conditioned on: the states of its text towers, the pooled text, and numbers about the picture."""

from collections.abc import Sequence

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from gm.compilation import Graph
from gm.errors import SuiteError
from gm.models.architecture import TextEncoderArchitecture
from gm.models.layers import sinusoidal_embedding
from gm.models.text_encoders import build_text_encoder

SIZE_EMBEDDING_WIDTH = 256


def size_embedding(time_ids: Tensor) -> Tensor:
    """Embed each of the numbers (B, N) on its own and join them -> (B, N * 256).

    ``gm.models.architecture.size_numbers`` says which numbers a model is told.
    """
    batch = time_ids.shape[0]
    return sinusoidal_embedding(time_ids.reshape(-1), SIZE_EMBEDDING_WIDTH).reshape(batch, -1)


def conditioning_vector(pooled: Tensor, time_ids: Tensor) -> Tensor:
    """The UNet's ``vector``: pooled text (B, P) joined with the embedded size numbers (B, N) -> (B, P + N * 256)."""
    return ops.concat((pooled, size_embedding(time_ids).astype(pooled.dtype)), axis=1)


class TextConditioner(Graph):
    """The text towers of a model: two (SDXL base), or one (its refiner, SD 1.x, SD 2.x).

    ``construct`` takes token ids (B, 77) for each tower and returns ``context`` (B, 77, sum of the widths) and, where a
    tower has a pooled state, ``pooled`` (B, P). It returns no None, with which a graph cannot be kept on disk.

    Ids (B, n * 77) are n chunks, each with a start and an end of its own, as ``gm.data.tokens`` makes them of long
    texts. A tower, which has positions for 77, sees them one by one; their states follow each other in ``context``
    (B, n * 77, C), and ``pooled`` is that of the first, as in kohya's scripts and the web UIs.
    """

    def __init__(self, architectures: tuple[TextEncoderArchitecture, ...]):
        super().__init__()
        self.embedders = nn.CellList([build_text_encoder(architecture) for architecture in architectures])
        self.towers = len(architectures)
        self.length = min(architecture.max_length for architecture in architectures)
        self.vocabulary = min(architecture.vocab_size for architecture in architectures)

    def construct(self, *ids: Tensor) -> tuple[Tensor, ...]:
        contexts, pooled = (), None
        batch, length = ids[0].shape
        chunks = max(length // self.length, 1)
        for index in range(self.towers):
            context, projected = self.embedders[index](ids[index].reshape(batch * chunks, length // chunks))
            contexts = contexts + (context.reshape(batch, length, -1),)
            if projected is not None:
                pooled = projected.reshape(batch, chunks, -1)[:, 0]
        context = contexts[0] if self.towers == 1 else ops.concat(contexts, axis=-1)
        return (context,) if pooled is None else (context, pooled)

    def encode(self, ids: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The same from and to numpy arrays; ``pooled`` is (B, 0) where there is none.

        Raises:
            SuiteError: ids the towers do not know, which the lookup itself would let pass without a word.
        """
        self.check(ids)
        context, *pooled = (states.asnumpy() for states in self(*(Tensor(array) for array in ids)))
        return context, pooled[0] if pooled else np.zeros((len(context), 0), np.float32)

    def check(self, ids: Sequence[np.ndarray]) -> None:
        """Raises SuiteError for ids the towers do not know."""
        largest = max(int(array.max()) for array in ids)
        if largest >= self.vocabulary:
            raise SuiteError(
                f"the tokenizer gives ids up to {largest} and the text encoders of these weights know "
                f"{self.vocabulary}: name the model's own tokenizer with --tokenizer"
            )

    def used_params(self) -> list[Parameter]:
        """The parameters that the outputs depend on: all but those behind the states that are taken."""
        idle = {parameter.name for embedder in self.embedders for parameter in embedder.idle_params()}
        return [parameter for parameter in self.get_parameters() if parameter.name not in idle]
