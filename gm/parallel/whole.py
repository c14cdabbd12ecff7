"""Weights that every device keeps a part of, and that are whole only while their layer computes (ZeRO stage 3).

Rajbhandari et al. 2019, arXiv 1910.02054, section 5.3.
"""

import math

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from gm.parallel.collectives import AllGather, Group, ReduceScatter
from gm.parallel.rules import rule
from gm.parallel.shards import Item, Shard, plan


class Whole(nn.Cell):
    """(k,) -> ``shape``: a weight from the shards of a group; backwards, this device's shard of the mean gradient."""

    def __init__(self, group: Group, shape: tuple[int, ...]):
        super().__init__(auto_prefix=False)
        self.shape, self.numbers, self.devices = shape, math.prod(shape), group.size
        self.padding = -self.numbers % group.size
        self.gather, self.scatter = AllGather(group), ReduceScatter(group)

    def construct(self, shard: Tensor) -> Tensor:
        return self.gather(shard)[: self.numbers].reshape(self.shape)

    def bprop(self, shard: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        flat = dout.reshape(-1).astype(ms.float32)
        if self.padding:
            flat = ops.concat((flat, ops.zeros((self.padding,), ms.float32)))
        return ((self.scatter(flat) / self.devices).astype(shard.dtype),)


def share_out(network: nn.Cell, group: Group) -> dict[str, Shard]:
    """Leave this device its shard of every weight of ``network`` that a rule divides flat over axis fsdp.

    For layers that have a ``whole``: a Cell that their weight passes on its way into the arithmetic. Its gathering is
    done again for the gradient, so that no whole weight is kept. Returns what became of each by name.
    """
    shards = {}
    for _, cell in network.cells_and_names():
        if not hasattr(cell, "whole") or cell.whole is not None:
            continue
        weight = cell.weight
        if len(weight.shape) < 2 or rule(weight.name, "fsdp") is None:
            continue
        item = Item(weight.name, tuple(weight.shape), decays=True)
        (bucket,) = plan([item], 0, group.size)
        shard = Shard(bucket, group.index, group.size)
        values = weight.asnumpy()
        part = Parameter(Tensor(shard.of(lambda name, values=values: values), weight.dtype), name=weight.name)
        part.requires_grad = weight.requires_grad
        part.decays = True
        cell.weight = part
        cell.whole = Whole(group, item.shape)
        cell.whole.recompute()
        shards[item.name] = shard
    return shards
