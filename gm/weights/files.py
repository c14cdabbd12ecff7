"""``open_weights``: any weight file as original SDXL keys, whatever its format and naming."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gm.errors import SuiteError
from gm.models.architecture import ModelArchitecture
from gm.weights.detect import describe, detect
from gm.weights.dtypes import is_finite
from gm.weights.keys import OPTIONAL_ENDINGS, Shapes, expected_shapes
from gm.weights.sources import FileSource, Source, TensorFile

# MindSpore's own layers call the parameters of norms and embeddings this; MindONE's files keep it.
MINDONE_ENDINGS = {".gamma": ".weight", ".beta": ".bias", ".embedding_table": ".weight"}
# One of its key lists, and so the files converted with it, has the tokens of CLIP-L under this name.
MINDONE_CLIP_L = "conditioner.embedders.1.model.token_embedding..embedding_table"
CLIP_L_TOKENS = "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight"
BUFFER_ENDINGS = (".position_ids",)  # constants that some writers save beside the weights; no network here has them


NAMED = 3  # how many offending keys a message names


def named(names: list[str]) -> str:
    """The first few names, for a message."""
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def same_shape(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Equal, a scalar being the same with and without a dimension of one."""
    return one == other or {one, other} == {(), (1,)}


@dataclass(frozen=True)
class Differences:
    """Keys that are not there, are there without a place, or have another shape."""

    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]


def compare(given: Shapes, expected: Shapes) -> Differences:
    """How the keys of a file differ from those of a network; one that no output depends on may be missing."""
    return Differences(
        [name for name in expected if name not in given and not name.endswith(OPTIONAL_ENDINGS)],
        [name for name in given if name not in expected],
        [name for name in expected if name in given and not same_shape(given[name], expected[name])],
    )


def original_name(name: str) -> str:
    """The original key for a parameter name of a MindONE file; any other name is returned as it is."""
    if name == MINDONE_CLIP_L:
        return CLIP_L_TOKENS
    for ending, original in MINDONE_ENDINGS.items():
        if name.endswith(ending):
            return name[: -len(ending)] + original
    return name


class WeightFile:
    """The tensors of a file or folder, under original SDXL keys, read when asked for.

    ``layout``: how names are written there: "original", "mindone" or "diffusers". ``format``: "safetensors", "ckpt" or
    "folder". A context manager; ``read`` and ``stream`` need it open.
    """

    def __init__(self, path: Path, sources: dict[str, Source], layout: str, files: list[TensorFile]):
        self.path, self.layout, self.sources, self.files = path, layout, sources, files
        self.format = "folder" if layout == "diffusers" else files[0].format

    def __enter__(self) -> "WeightFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for file in self.files:
            file.close()

    def names(self, buffers: bool = False) -> list[str]:
        """Keys in file order; ``buffers`` adds constants such as position_ids."""
        return [name for name in self.sources if buffers or not name.endswith(BUFFER_ENDINGS)]

    def __contains__(self, name: str) -> bool:
        return name in self.sources

    def shape(self, name: str) -> tuple[int, ...]:
        return self.sources[name].shape

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: self.shape(name) for name in self.names()}

    def dtype(self, name: str) -> str:
        """The number format: "F32", "F16", "BF16", "I64", ..."""
        return self.sources[name].dtype

    def read(self, name: str) -> np.ndarray:
        """The whole tensor; BF16 as uint16 bits."""
        return self.sources[name].read()

    def stream(self, name: str) -> Iterator[np.ndarray]:
        """The tensor in flat chunks of a few megabytes; each is valid until the next is asked for.

        Raises:
            SuiteError: a value is NaN or infinite.
        """
        for chunk in self.sources[name].stream():
            if not is_finite(chunk, self.dtype(name)):
                raise SuiteError(
                    f"{self.path}: {name} has NaN or infinite values: the model is broken, take an earlier checkpoint"
                )
            yield chunk

    def architecture(self) -> ModelArchitecture:
        """What network the file is of.

        Raises:
            SuiteError: none that is known here; says what the file looks like instead.
        """
        try:
            return detect(self.shapes())
        except SuiteError as error:
            raise SuiteError(f"{self.path}: {error}") from None

    def check_whole(self) -> None:
        """Raises SuiteError unless each part that the file has is all there, in its shapes."""
        shapes = self.shapes()
        found = compare(shapes, expected_shapes(self.architecture()))
        for kind, names in (("lacks", found.missing), ("has in another shape", found.misshapen)):
            if names:
                raise SuiteError(
                    f"{self.path} is damaged, it {kind} {len(names)} of its {len(shapes)} keys ({named(names)}): "
                    "download or save it again"
                )

    def describe(self) -> str:
        """What the file is, in words, for messages."""
        try:
            architecture = detect(self.shapes())
        except SuiteError:
            return describe(self.shapes())
        parts = ["a UNet"] * (architecture.unet is not None)
        parts += ["an autoencoder"] * (architecture.autoencoder is not None)
        if architecture.text_encoders:
            count = len(architecture.text_encoders)
            parts.append("a text encoder" if count == 1 else f"{count} text encoders")
        return f"{architecture.name} with {', '.join(parts)}"


def open_weights(path: str | Path) -> WeightFile:
    """Open a ``.safetensors``, a ``.ckpt`` or a diffusers folder; the contents decide, not the name.

    Raises:
        SuiteError: missing, truncated, damaged, or no weight file; the message says what it is.
    """
    path = Path(path)
    if not path.exists():
        raise SuiteError(f"no such weight file: {path}")
    if path.is_dir():
        from gm.weights.folder import open_folder

        return open_folder(path)
    file = TensorFile(path)
    sources: dict[str, Source] = {}
    layout = "original"
    for raw, entry in file.entries.items():
        name = original_name(raw)
        if name != raw:
            layout = "mindone"
        if name in sources:
            file.close()
            raise SuiteError(f"{path}: {name} occurs twice, also as {raw}: the file mixes two naming schemes")
        sources[name] = FileSource(file, entry, entry.shape)
    return WeightFile(path, sources, layout, [file])
