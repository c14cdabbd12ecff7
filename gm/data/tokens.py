"""Captions to token ids for SDXL's two text encoders."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gm.errors import SuiteError

MAX_LENGTH = 77  # of CLIP: start, up to 75 tokens, end
FILES = ("vocab.json", "merges.txt")
DEFAULT_TOKENIZER = "openai/clip-vit-large-patch14"  # OpenCLIP's bigG has the same vocabulary, so it serves both

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tokenizer:
    """One CLIP byte-pair vocabulary. ``hash`` changes with any of its files."""

    name: str
    codec: Any  # transformers.CLIPTokenizer
    hash: str

    def encode(self, texts: Sequence[str], pad: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Ids padded with ``pad`` (None: the end token) (B, 77) int32, and the number of tokens cut off each (B,)."""
        start, end = self.codec.bos_token_id, self.codec.eos_token_id
        ids = np.full((len(texts), MAX_LENGTH), end if pad is None else pad, np.int32)
        cut = np.zeros(len(texts), np.int64)
        tokens = self.codec(list(texts), add_special_tokens=False, verbose=False).input_ids if texts else []
        for row, full in enumerate(tokens):
            kept = [start, *full[: MAX_LENGTH - 2], end]
            ids[row, : len(kept)] = kept
            cut[row] = max(0, len(full) - (MAX_LENGTH - 2))
        return ids, cut


@dataclass(frozen=True)
class Tokenizers:
    """The tokenizers of both encoders. The first pads with its end token, the second with id 0, as SDXL was trained."""

    first: Tokenizer
    second: Tokenizer

    @classmethod
    def load(cls, tokenizer: str | Path | None = None, tokenizer_2: str | Path | None = None) -> "Tokenizers":
        """From local folders with vocab.json and merges.txt, or hub names; the second defaults to the first."""
        first = load_tokenizer(tokenizer or DEFAULT_TOKENIZER)
        return cls(first, first if tokenizer_2 in (None, "", tokenizer) else load_tokenizer(tokenizer_2))

    @property
    def hash(self) -> str:
        return hashlib.blake2b(
            f"{self.first.hash} {self.second.hash} {MAX_LENGTH}".encode(), digest_size=16
        ).hexdigest()

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids for both encoders: two arrays (B, 77) int32. Longer texts are cut."""
        return self.first.encode(texts, None)[0], self.second.encode(texts, 0)[0]

    def cut_off(self, texts: Sequence[str]) -> np.ndarray:
        """How many tokens of each text lie beyond the 77 and are not seen: (B,) int64."""
        return self.first.encode(texts, None)[1]


def load_tokenizer(name: str | Path) -> Tokenizer:
    """Raises SuiteError that says which files are needed where."""
    files = _local_files(Path(name)) or _hub_files(str(name))
    from transformers import CLIPTokenizer  # importing it takes a second

    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        content = path.read_bytes()
        digest.update(len(content).to_bytes(8, "little") + content)
    try:
        codec = CLIPTokenizer.from_pretrained(str(files[0].parent), local_files_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise SuiteError(
            f"the tokenizer files in {files[0].parent} cannot be read ({reason}): fetch them again"
        ) from None
    return Tokenizer(str(name), codec, digest.hexdigest())


def _local_files(folder: Path) -> list[Path] | None:
    """The vocabulary in ``folder``, or in the tokenizer/ of a diffusers folder; None if there is no such folder."""
    if not folder.is_dir():
        return None
    for candidate in (folder, folder / "tokenizer"):
        files = [candidate / name for name in FILES]
        if all(path.is_file() for path in files):
            return files
    missing = [name for name in FILES if not (folder / name).is_file()]
    raise SuiteError(
        f"tokenizer folder {folder} lacks {' and '.join(missing)}: put them there (any CLIP model has them)"
    )


def _hub_files(name: str) -> list[Path]:
    remedy = f"fetch {' and '.join(FILES)} of {DEFAULT_TOKENIZER}, put them into a folder and name it with --tokenizer"
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise SuiteError(f"no tokenizer folder {name}: {remedy}")
    from transformers.utils import cached_file

    try:
        return [Path(cached_file(name, file)) for file in FILES]
    except Exception as error:
        log.debug("tokenizer %s: %s", name, error)
        raise SuiteError(f"tokenizer {name} is neither stored here nor to be had from the hub: {remedy}") from None
