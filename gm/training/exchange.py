"""What the devices of a training tell each other in a step, as Cells that the step calls."""

from collections.abc import Container, Sequence

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from gm.parallel.buckets import Buckets
from gm.parallel.collectives import AllReduce
from gm.parallel.shards import plan
from gm.parallel.world import World
from gm.training.optimizer import items


class Exchange(nn.Cell):
    """Plain data parallelism: every device has all gradients, and they become the means over the parts of the batch.

    The gradients go in buckets, each with one AllReduce. A bucket depends on its own gradients only, so the devices
    exchange it while the backward pass of the layers before it goes on, where MindSpore has a stream of its own for
    communication (Ascend).
    """

    early = False  # the sums over accumulated batches are exchanged, not each batch's gradients

    def __init__(
        self, world: World, trained: Sequence[Parameter], megabytes: float, divided: Container[str] = frozenset()
    ):
        super().__init__(auto_prefix=False)
        self.divides = world.mesh.degree("tensor") > 1
        if self.divides:  # axis tensor has parts of these parameters, and the others whole on each device
            self.divided = Tensor([float(parameter.name in divided) for parameter in trained], ms.float32)
            self.over_tensor = AllReduce(world.group("tensor"))
        _, self.parts = world.batch
        self.buckets = Buckets(plan(items(trained), megabytes))
        self.sum = AllReduce(world.group("data", "fsdp"))

    def construct(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The gradients of this device's part of the batch -> those of the whole batch, in float32."""
        joined = ()
        for bucket in self.buckets(gradients):
            joined = joined + (self.sum(bucket) / self.parts,)
        return self.buckets.divide(joined, gradients)

    def losses(self, loss: Tensor, raw_loss: Tensor) -> tuple[Tensor, Tensor]:
        """The means over the parts of the batch."""
        both = self.sum(ops.stack((loss, raw_loss))) / self.parts
        return both[0], both[1]

    def square_sums(self, sums: Tensor) -> Tensor:
        """Those of the whole gradients, from those of what this device has."""
        if self.divides:
            return sums * (1.0 - self.divided) + self.over_tensor(sums * self.divided)
        return sums
