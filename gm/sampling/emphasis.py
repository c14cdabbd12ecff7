"""Prompts with weights, ``a (red:1.3) circle on [grey]``, as the Stable Diffusion web UI (AUTOMATIC1111) reads them.

- ``(word)`` counts 1.1 times, ``((word))`` 1.21 times, ``[word]`` 1 / 1.1 times, ``(word:1.3)`` 1.3 times. Brackets may
  be nested, and what is never closed counts to the end.
- A backslash before a bracket makes it a letter.

What a weight does: the states that a text encoder gives to the word's tokens are multiplied by it, then all states of
the prompt are scaled so that their mean is what it was. The pooled state is not touched.
"""

import re
from collections.abc import Sequence

import numpy as np

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


def emphasise(context: np.ndarray, weights: np.ndarray, widths: Sequence[int]) -> np.ndarray:
    """States (N, sum of ``widths``) with each token (N,) at its weight; the mean of each encoder's part stays."""
    parts, first = [], 0
    for width in widths:
        part = context[:, first : first + width]
        weighted = part * weights[:, None].astype(part.dtype)
        parts.append(weighted * (part.mean(dtype=np.float64) / weighted.mean(dtype=np.float64)).astype(part.dtype))
        first += width
    return np.concatenate(parts, axis=1)
