"""What devices do together, each behind one Cell: Ascend's collectives, and on the CPU what stands for them.

MindSpore's CPU library adds up over any group, and gathers over all processes only. So there a ReduceScatter is an
AllReduce of which a device keeps its part, and an AllGather within a group an AllReduce of parts in a row of zeros.
"""

import zlib
from dataclasses import dataclass

import mindspore as ms
from mindspore import Tensor, nn, ops
from mindspore.communication import GlobalComm, create_group

from gm.parallel.mesh import Mesh


@dataclass(frozen=True)
class Group:
    """``size`` devices that work together, of which this process is number ``index``; ``everyone``: all of them."""

    name: str
    size: int
    index: int
    everyone: bool

    @classmethod
    def of(cls, mesh: Mesh, *axes: str) -> "Group":
        """Those that differ along these axes only. All members must ask for it, and for their groups in one order."""
        ranks = mesh.ranks(*axes)
        everyone = len(ranks) == mesh.size
        if len(ranks) == 1:
            return cls("alone", 1, 0, everyone)
        if ranks == tuple(range(mesh.size)):
            return cls(GlobalComm.WORLD_COMM_GROUP, len(ranks), mesh.index(*axes), True)
        # HCCL takes names of up to 127 characters, too few for the ranks of a large group.
        name = f"{'-'.join(axes)}-{ranks[0]}-{zlib.crc32(repr(ranks).encode()):08x}"
        if name not in _created:
            create_group(name, list(ranks))
            _created.add(name)
        return cls(name, len(ranks), mesh.index(*axes), False)


_created: set[str] = set()


class AllReduce(nn.Cell):
    """The sum over the group, of any shape; in a group of one the tensor itself."""

    def __init__(self, group: Group):
        super().__init__(auto_prefix=False)
        self.alone = group.size == 1
        self.reduce = None if self.alone else ops.AllReduce(ops.ReduceOp.SUM, group.name)

    def construct(self, x: Tensor) -> Tensor:
        return x if self.alone else self.reduce(x)


class ReduceScatter(nn.Cell):
    """(size * k,) -> (k,): this device's part of the sum over the group. ``target``: by default the present device."""

    def __init__(self, group: Group, target: str | None = None):
        super().__init__(auto_prefix=False)
        self.alone, self.size, self.index = group.size == 1, group.size, group.index
        self.native = (target or ms.get_context("device_target")) != "CPU"
        self.reduce = None
        if not self.alone and self.native:
            self.reduce = ops.ReduceScatter(ops.ReduceOp.SUM, group.name)
        elif not self.alone:
            self.reduce = ops.AllReduce(ops.ReduceOp.SUM, group.name)

    def construct(self, x: Tensor) -> Tensor:
        if self.alone:
            return x
        if self.native:
            return self.reduce(x)
        part = x.shape[0] // self.size
        return self.reduce(x)[self.index * part : (self.index + 1) * part]


class AllGather(nn.Cell):
    """(k,) -> (size * k,): the parts of all devices of the group in its order."""

    def __init__(self, group: Group, target: str | None = None):
        super().__init__(auto_prefix=False)
        self.alone, self.size, self.index = group.size == 1, group.size, group.index
        self.native = group.everyone or (target or ms.get_context("device_target")) != "CPU"
        self.gather = None
        if not self.alone and self.native:
            self.gather = ops.AllGather(group.name)
        elif not self.alone:
            self.gather = ops.AllReduce(ops.ReduceOp.SUM, group.name)

    def construct(self, x: Tensor) -> Tensor:
        if self.alone:
            return x
        if self.native:
            return self.gather(x)
        row = ()
        for place in range(self.size):
            row = row + (x if place == self.index else ops.zeros_like(x),)
        return self.gather(ops.concat(row))
