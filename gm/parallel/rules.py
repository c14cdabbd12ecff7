"""What is divided over which axis of the mesh: patterns of parameter names, beside the networks and not in them.

The first rule whose pattern is found in a name says how that parameter is divided; one without a rule is whole on every
device. Rules of axis ``fsdp`` are for ``--zero_stage 3``, which keeps weights as shards and gathers each for its layer.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """``pattern``: a regular expression; ``axis``: of the mesh; ``kind``: how a tensor is divided over it.

    "flat": the tensor as one row of numbers, filled up with zeros, in equal parts.
    """

    pattern: str
    axis: str
    kind: str


# Convolutions and linear layers are nearly all of a model; norms and biases stay whole, as their gathering costs more
# than their memory.
RULES = (Rule(r"\.weight$", "fsdp", "flat"),)


def rule(name: str, axis: str) -> Rule | None:
    """The rule of a parameter for one axis."""
    return next((one for one in RULES if one.axis == axis and re.search(one.pattern, name)), None)
