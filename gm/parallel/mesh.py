"""The devices of a training as a grid with the axes ``data``, ``fsdp`` and ``tensor``, as MaxDiffusion has it.

The batch is divided over ``data`` and ``fsdp``; ``fsdp`` also shares out what ``--zero_stage`` names, and ``tensor``
divides single layers. Each axis has a degree within a server (``ici_*_parallelism``, fast links) and one between
servers (``dcn_*_parallelism``), whose product is its length; neighbours along an ``ici`` degree are on one server.
"""

import math
from dataclasses import dataclass

import numpy as np

from gm.config.sections.machine import ParallelConfig
from gm.errors import UsageError

AXES = ("data", "fsdp", "tensor")
REST = -1  # a degree that is what the others leave


@dataclass(frozen=True)
class Mesh:
    """``degrees`` of the axes; the rank at every place of the grid, in order of the axes; this process is ``rank``."""

    degrees: tuple[int, int, int] = (1, 1, 1)
    places: tuple[int, ...] = (0,)
    rank: int = 0

    @classmethod
    def of(cls, config: ParallelConfig, size: int, rank: int = 0, servers: int = 1) -> "Mesh":
        """The mesh of ``size`` processes on ``servers`` servers, ranks counting server after server.

        Raises:
            UsageError: the degrees do not make up the number of devices, or ``--zero_stage`` has no devices to share.
        """
        ici, dcn = _degrees(config, "ici"), _degrees(config, "dcn")
        told = REST in dcn or (servers > 1 and math.prod(dcn) > 1)
        between = _filled(dcn, servers, "dcn", "servers") if told else dcn
        slices = math.prod(between)
        if size % slices:
            raise UsageError(f"{_product(dcn, 'dcn')} = {slices} servers do not divide {size} devices evenly")
        within = _filled(ici, size // slices, "ici", "devices" if slices == 1 else "devices of a server")
        grid = np.arange(size).reshape(*between, *within).transpose(0, 3, 1, 4, 2, 5)
        degrees = tuple(outer * inner for outer, inner in zip(between, within))
        fsdp = degrees[AXES.index("fsdp")]
        if config.zero_stage == 0 and fsdp > 1:
            raise UsageError(
                f"axis fsdp of {fsdp} devices has nothing to share with --zero_stage 0: "
                "give --zero_stage 1, 2 or 3, or --ici_data_parallelism in its place"
            )
        return cls(degrees, tuple(int(place) for place in grid.ravel()), rank)

    @property
    def size(self) -> int:
        return math.prod(self.degrees)

    def degree(self, *axes: str) -> int:
        """Places along these axes together."""
        return math.prod(self.degrees[AXES.index(axis)] for axis in axes)

    def index(self, *axes: str) -> int:
        """The number of this process along these axes together, the last one counting fastest."""
        here = np.unravel_index(self.places.index(self.rank), self.degrees)
        found = 0
        for axis in axes:
            found = found * self.degree(axis) + int(here[AXES.index(axis)])
        return found

    def ranks(self, *axes: str) -> tuple[int, ...]:
        """The ranks that differ from this one along these axes only, in the order of ``index``."""
        here = np.unravel_index(self.places.index(self.rank), self.degrees)
        chosen = tuple(slice(None) if axis in axes else int(place) for axis, place in zip(AXES, here))
        return tuple(int(rank) for rank in np.array(self.places).reshape(self.degrees)[chosen].ravel())

    def describe(self) -> str:
        """``data 2 x fsdp 4``: the axes that are longer than one."""
        long = [f"{axis} {degree}" for axis, degree in zip(AXES, self.degrees) if degree > 1]
        return " x ".join(long) or "one device"


def _degrees(config: ParallelConfig, kind: str) -> tuple[int, ...]:
    """As given; within a server, what is left goes to axis fsdp if there is anything to share, else to data."""
    given = [config.dcn_data_parallelism, config.dcn_fsdp_parallelism, config.dcn_tensor_parallelism]
    if kind == "ici":
        given = [config.ici_data_parallelism, config.ici_fsdp_parallelism, config.ici_tensor_parallelism]
    if kind == "ici" and REST not in given:
        data, fsdp, _ = given
        if config.zero_stage and data is None and fsdp is None:
            given[AXES.index("fsdp")] = REST
        elif data is None:
            given[AXES.index("data")] = REST
    for axis, degree in zip(AXES, given):
        if degree == 0:
            raise UsageError(f"--{kind}_{axis}_parallelism 0: at least 1, or -1 for what is left")
    return tuple(1 if degree is None else degree for degree in given)


def _filled(degrees: tuple[int, ...], total: int, kind: str, what: str) -> tuple[int, ...]:
    """``degrees`` with the one that is -1 made what is left of ``total``."""
    if degrees.count(REST) > 1:
        raise UsageError(f"more than one -1 in {_product(degrees, kind)}: only one of them can be what is left")
    known = math.prod(degree for degree in degrees if degree != REST)
    left = total // known if REST in degrees else 1
    if known * left != total:
        raise UsageError(f"{_product(degrees, kind)} does not make up {total} {what}")
    return tuple(left if degree == REST else degree for degree in degrees)


def _product(degrees: tuple[int, ...], kind: str) -> str:
    return " x ".join(f"--{kind}_{axis}_parallelism {degree}" for axis, degree in zip(AXES, degrees))
