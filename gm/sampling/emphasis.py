"""Prompts with weights, ``a (red:1.3) circle on [grey]``, as the Stable Diffusion web UI (AUTOMATIC1111) reads them.

- ``(word)`` counts 1.1 times, ``((word))`` 1.21 times, ``[word]`` 1 / 1.1 times, ``(word:1.3)`` 1.3 times. Brackets may
  be nested, and what is never closed counts to the end.
- A backslash before a bracket makes it a letter.

What a weight does: the states that a text encoder gives to the word's tokens are multiplied by it, then all states of
the prompt are scaled so that their mean is what it was. The pooled state is not touched.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gm.data.tokens import CHUNK, MAX_LENGTH

if TYPE_CHECKING:
    from gm.data.tokens import Tokenizers

UP, DOWN = 1.1, 1 / 1.1
TOKEN = re.compile(r"\\[()\[\]\\]|:\s*([+-]?[.\d]+)\s*\)|[()\[\]]|[^\\()\[\]:]+|[\\:]")

Fragment = tuple[str, float]  # a piece of a prompt and how much it counts


def fragments(prompt: str) -> list[Fragment]:
    """The pieces of a prompt with the weight of each; neighbours of equal weight are one piece."""
    pieces: list[list] = []
    round_brackets: list[int] = []
    square_brackets: list[int] = []

    def scale(first: int, factor: float) -> None:
        for piece in pieces[first:]:
            piece[1] *= factor

    for match in TOKEN.finditer(prompt):
        text, weight = match[0], match[1]
        if text.startswith("\\") and len(text) == 2:
            pieces.append([text[1], 1.0])
        elif text == "(":
            round_brackets.append(len(pieces))
        elif text == "[":
            square_brackets.append(len(pieces))
        elif weight is not None and round_brackets:
            scale(round_brackets.pop(), float(weight))
        elif text == ")" and round_brackets:
            scale(round_brackets.pop(), UP)
        elif text == "]" and square_brackets:
            scale(square_brackets.pop(), DOWN)
        else:
            pieces.append([text, 1.0])
    for first in round_brackets:
        scale(first, UP)
    for first in square_brackets:
        scale(first, DOWN)
    merged: list[Fragment] = []
    for text, weight in pieces:
        if merged and merged[-1][1] == weight:
            merged[-1] = (merged[-1][0] + text, weight)
        else:
            merged.append((text, weight))
    return merged or [("", 1.0)]


class Emphasis:
    """The weights of prompts for text encoders of these ``widths``, by their ``tokenizers``."""

    def __init__(self, tokenizers: "Tokenizers", widths: Sequence[int]):
        self._codecs = [tokenizer.codec for tokenizer in tokenizers.each]
        self._widths = widths

    def apply(self, prompt: str, context: np.ndarray) -> np.ndarray:
        """The states (77 n, C) of ``plain(prompt)`` with each token at its weight; the mean of each encoder's stays."""
        parts, first = [], 0
        for codec, width in zip(self._codecs, self._widths):
            weights = token_weights(codec, fragments(prompt), len(context))
            parts.append(emphasise(context[:, first : first + width], weights))
            first += width
        return np.concatenate(parts, axis=1)


def plain(prompt: str) -> str:
    """What a prompt says without its weights."""
    return "".join(text for text, _ in fragments(prompt))


def token_weights(codec: Any, pieces: Sequence[Fragment], length: int) -> np.ndarray:
    """The weight of each of ``length`` states, 77 for every 75 tokens; 1 for start, end and filling."""
    text = "".join(piece for piece, _ in pieces)
    of_letters = np.concatenate([np.full(len(piece), weight) for piece, weight in pieces])
    spans = codec(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False).offset_mapping
    weights = np.ones((length // MAX_LENGTH, MAX_LENGTH))
    for index, (_, end) in enumerate(spans[: len(weights) * CHUNK]):
        weights[index // CHUNK, 1 + index % CHUNK] = of_letters[end - 1]
    return weights.reshape(length)


def emphasise(context: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """States (N, C) of one encoder times weights (N,), scaled so that their mean stays what it was."""
    if (weights == 1).all():
        return context
    weighted = context * weights[:, None].astype(context.dtype)
    return weighted * (context.mean(dtype=np.float64) / weighted.mean(dtype=np.float64)).astype(context.dtype)
