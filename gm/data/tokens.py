"""Captions to token ids for the text encoders of a model."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from gm.config.sections.data import ModelConfig
from gm.errors import SuiteError
from gm.models.architecture import UNTRAINED, ModelArchitecture, TextEncoderArchitecture
from gm.weights.files import open_weights
from gm.weights.folder import TOKENIZER_FILES, tokenizer_folders

CHUNK = 75  # tokens that CLIP takes between start and end
MAX_LENGTH = CHUNK + 2
DEFAULT_TOKENIZER = "openai/clip-vit-large-patch14"  # OpenCLIP has the same vocabulary, so it serves all
MARKS = ("<|startoftext|>", "<|endoftext|>")  # in every vocabulary of CLIP; GPT-2's files have the same names
SDXL = ModelArchitecture().text_encoders

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tokenizer:
    """One CLIP byte-pair vocabulary. ``hash`` changes with any of its files."""

    name: str
    codec: Any  # transformers.CLIPTokenizer
    hash: str

    def encode(self, texts: Sequence[str], pad: int | None, chunks: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Ids (B, 77 * chunks) int32 and the number of tokens cut off each text (B,).

        Each chunk of 77 is start, up to 75 tokens, end, and ``pad`` (None: the end token) up to its length; chunks
        that a text does not reach are those of the empty text.
        """
        start, end = self.codec.bos_token_id, self.codec.eos_token_id
        ids = np.full((len(texts), chunks, MAX_LENGTH), end if pad is None else pad, np.int32)
        ids[:, :, :2] = start, end
        cut = np.zeros(len(texts), np.int64)
        tokens = self.codec(list(texts), add_special_tokens=False, verbose=False).input_ids if texts else []
        for row, full in enumerate(tokens):
            for chunk in range(chunks):
                kept = [start, *full[chunk * CHUNK : (chunk + 1) * CHUNK], end]
                ids[row, chunk, : len(kept)] = kept
            cut[row] = max(0, len(full) - chunks * CHUNK)
        return ids.reshape(len(texts), chunks * MAX_LENGTH), cut


@dataclass(frozen=True)
class Tokenizers:
    """The tokenizer of each text encoder of a model, and the id it pads with (None: the end token).

    A text is split into as many ``chunks`` of 75 tokens, which the conditioner encodes one by one.
    """

    each: tuple[Tokenizer, ...]
    pads: tuple[int | None, ...]
    chunks: int = 1

    @classmethod
    def load(
        cls,
        tokenizer: str | Path | None = None,
        tokenizer_2: str | Path | None = None,
        encoders: Sequence[TextEncoderArchitecture] = SDXL,
        weight: Path | None = None,
        chunks: int = 1,
    ) -> "Tokenizers":
        """From local folders with vocab.json and merges.txt, or hub names; the second defaults to the first.

        A diffusers folder is such a folder, too, for all ``encoders``. ``weight`` is one that need not have
        tokenizers: where it has, they are taken in place of the default one.

        Raises:
            SuiteError: that says which files are needed where.
        """
        names = {"tokenizer": tokenizer or DEFAULT_TOKENIZER}
        names["tokenizer_2"] = tokenizer_2 or names["tokenizer"]
        loaded: dict[tuple[Path, ...], Tokenizer] = {}
        each = []
        for place in tokenizer_folders(encoders):
            name = str(names[place])
            own = weight / place if weight is not None and name == DEFAULT_TOKENIZER else None
            files = tuple(_own_files(own) or _local_files(Path(name), place) or _hub_files(name, own))
            if files not in loaded:
                loaded[files] = _read(name, files)
            each.append(loaded[files])
        return cls(tuple(each), tuple(encoder.pad_token for encoder in encoders), chunks)

    @classmethod
    def of(cls, model: ModelConfig) -> "Tokenizers":
        """Those the weights of a configuration need; those of ``model.architecture`` while there are none.

        Raises:
            SuiteError: the weights or the tokenizers cannot be read.
        """
        weight, chunks = Path(model.weight), model.max_token_length // CHUNK
        names = (model.tokenizer, model.tokenizer_2)
        if not model.weight or not weight.exists():
            return cls.load(*names, UNTRAINED[model.architecture].text_encoders, chunks=chunks)
        with open_weights(weight) as weights:
            encoders = weights.architecture().text_encoders or SDXL
        return cls.load(*names, encoders, weight if weight.is_dir() else None, chunks)

    @property
    def length(self) -> int:
        """Ids of a text, those that begin, end and fill it included."""
        return self.chunks * MAX_LENGTH

    @property
    def hash(self) -> str:
        hashes = " ".join(tokenizer.hash for tokenizer in self.each)
        return hashlib.blake2b(f"{hashes} {self.pads} {self.length}".encode(), digest_size=16).hexdigest()

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, ...]:
        """Token ids for each text encoder, (B, 77 * chunks) int32. Longer texts are cut."""
        return tuple(tokenizer.encode(texts, pad, self.chunks)[0] for tokenizer, pad in zip(self.each, self.pads))

    def cut_off(self, texts: Sequence[str]) -> np.ndarray:
        """How many tokens of each text lie beyond the last chunk and are not seen: (B,) int64."""
        return self.each[0].encode(texts, None, self.chunks)[1]


def context_length(model: ModelConfig) -> int:
    """Ids of a text, and states that the UNet attends to: 77 for every 75 tokens of ``max_token_length``."""
    return model.max_token_length // CHUNK * MAX_LENGTH


def _read(name: str, files: Sequence[Path]) -> Tokenizer:
    from transformers import CLIPTokenizer  # importing it takes a second

    digest, lacking = hashlib.blake2b(digest_size=16), set(MARKS)
    for path in files:
        content = path.read_bytes()
        lacking = {mark for mark in lacking if mark.encode() not in content}
        digest.update(len(content).to_bytes(8, "little") + content)
    try:
        codec = CLIPTokenizer.from_pretrained(str(files[0].parent), local_files_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise SuiteError(
            f"the tokenizer files in {files[0].parent} cannot be read ({reason}): fetch them again"
        ) from None
    if lacking:  # transformers would make them up
        raise SuiteError(
            f"the tokenizer in {files[0].parent} is not CLIP's, it knows no {' and '.join(sorted(lacking))}: fetch "
            f"{' and '.join(TOKENIZER_FILES)} of {DEFAULT_TOKENIZER}"
        )
    return Tokenizer(name, codec, digest.hexdigest())


def _files(folder: Path) -> list[Path]:
    """The vocabulary in ``folder``, or nothing unless all of it is there; transformers 5 writes it as one file."""
    for names in (TOKENIZER_FILES, ("tokenizer.json",)):
        files = [folder / name for name in names]
        if all(path.is_file() for path in files):
            return files
    return []


def _own_files(folder: Path | None) -> list[Path]:
    """The vocabulary in a folder of the weights themselves, if they have one."""
    if folder is None or not folder.is_dir():
        return []
    return _files(folder) or _complain(folder)


def _local_files(folder: Path, place: str) -> list[Path]:
    """The vocabulary in ``folder``, or in ``place`` of a diffusers folder; nothing if there is no such folder."""
    if not folder.is_dir():
        return []
    for candidate in (folder, folder / place, folder / "tokenizer", folder / "tokenizer_2"):
        if files := _files(candidate):
            return files
    return _complain(folder)


def _complain(folder: Path) -> NoReturn:
    missing = [name for name in TOKENIZER_FILES if not (folder / name).is_file()]
    raise SuiteError(
        f"tokenizer folder {folder} lacks {' and '.join(missing)}: put them there (any CLIP model has them)"
    )


def _hub_files(name: str, own: Path | None) -> list[Path]:
    place = "into a folder and name it with --tokenizer" if own is None else f"into {own}"
    remedy = f"fetch {' and '.join(TOKENIZER_FILES)} of {DEFAULT_TOKENIZER}, put them {place}"
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise SuiteError(f"no tokenizer folder {name}: {remedy}")
    from transformers.utils import cached_file

    try:
        return [Path(cached_file(name, file)) for file in TOKENIZER_FILES]
    except Exception as error:
        log.debug("tokenizer %s: %s", name, error)
        raise SuiteError(f"tokenizer {name} is neither stored here nor to be had from the hub: {remedy}") from None
