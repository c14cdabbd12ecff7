"""What is divided over which axis of the mesh: patterns of parameter names, beside the networks and not in them.

The first rule whose pattern is found in a name says how that parameter is divided over the axis; one without a rule is
whole on every device of it. Rules of axis ``fsdp`` are for ``--zero_stage 3``, which keeps weights as shards and
gathers each for its layer; those of axis ``tensor`` divide the arithmetic of a layer too.
"""

import re
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rule:
    """``pattern``: a regular expression; ``axis``: of the mesh; ``kind``: how a tensor is divided over it.

    "flat": the tensor as one row of numbers, filled up with zeros, in equal parts. Of weights (out, in): "rows", of a
    layer that gives a part of its output; "columns", of one that takes a part of its input; "halves", the rows of two
    layers that lie one below the other, divided each.
    """

    pattern: str
    axis: str
    kind: str


# Over fsdp: convolutions and linear layers are nearly all of a model; norms and biases stay whole, as gathering them
# costs more than their memory. Over tensor: as Megatron-LM (Shoeybi et al. 2019, arXiv 1909.08053, section 3), so that
# attention and feed-forward each need one sum over the devices.
RULES = (
    Rule(r"\.weight$", "fsdp", "flat"),
    Rule(r"\.attn[12]\.to_[qkv]\.weight$", "tensor", "rows"),
    Rule(r"\.attn[12]\.to_out\.0\.weight$", "tensor", "columns"),
    Rule(r"\.ff\.net\.0\.proj\.(weight|bias)$", "tensor", "halves"),
    Rule(r"\.ff\.net\.2\.weight$", "tensor", "columns"),
)


def rule(name: str, axis: str) -> Rule | None:
    """The rule of a parameter for one axis."""
    return next((one for one in RULES if one.axis == axis and re.search(one.pattern, name)), None)


def cut(kind: str, whole: np.ndarray, index: int, count: int) -> np.ndarray:
    """Part ``index`` of ``count`` equal ones of a tensor that axis tensor divides."""
    if kind == "columns":
        return np.ascontiguousarray(np.split(whole, count, axis=1)[index])
    if kind == "rows":
        return np.split(whole, count)[index]
    return np.concatenate([np.split(half, count)[index] for half in np.split(whole, 2)])


def join(kind: str, parts: list[np.ndarray]) -> np.ndarray:
    """The whole tensor from all its parts, in order."""
    if kind == "columns":
        return np.concatenate(parts, axis=1)
    if kind == "rows":
        return np.concatenate(parts)
    return np.concatenate([np.split(part, 2)[half] for half in (0, 1) for part in parts])


def part_shape(kind: str, whole: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The shape of each of ``count`` parts of a tensor of that shape."""
    axis = 1 if kind == "columns" else 0
    return tuple(side // count if place == axis else side for place, side in enumerate(whole))


def whole_shape(kind: str, part: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The shape of the tensor of which that is the shape of each of ``count`` parts."""
    axis = 1 if kind == "columns" else 0
    return tuple(side * count if place == axis else side for place, side in enumerate(part))
