"""Optimizer state, gradients and weights shared out over the devices of axis fsdp: ZeRO stages 1 to 3.

Rajbhandari et al. 2019, arXiv 1910.02054. The weights are laid end to end in flat float32 buckets; of each a device has
one part, with which it goes as a single device would with a tensor: AdamW and Lion take every number by itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from gm.parallel.buckets import Buckets
from gm.parallel.collectives import AllGather, AllReduce, ReduceScatter
from gm.parallel.shards import Bucket, Item, Shard, plan
from gm.parallel.world import World
from gm.training.exchange import Exchange, items
from gm.training.optimizer import Optimizer, decays
from gm.training.shared_state import Portion, Shares


@dataclass(frozen=True)
class Flat:
    """A flat parameter that is trained here, and which numbers of which weights it has."""

    parameter: Parameter
    shard: Shard


@dataclass(frozen=True)
class Layout:
    """How the trained weights lie: ``whole`` ones in ``buckets``, in this order, and those that are ``shards`` already.

    ``flats``: what the optimizer trains here, the parts of the buckets and then the shards themselves.
    """

    whole: list[Parameter]
    shards: list[Parameter]
    buckets: list[Bucket]
    flats: list[Flat]
    replica: int  # the place along axis data: those with the same parts of the weights are numbered

    @property
    def whole_shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of the weights that are shards here."""
        own = self.flats[len(self.buckets) :]
        return {item.name: item.shape for flat in own for item in flat.shard.bucket.items}

    @property
    def trained(self) -> list[Parameter]:
        """The parameters of the network, in the order of the gradients."""
        return [*self.whole, *self.shards]


def lay_out(trained: Sequence[Parameter], world: World, megabytes: float, shards: dict[str, Shard]) -> Layout:
    """``shards``: those of the weights of which this device has only a part, by name."""
    own = [parameter for parameter in trained if parameter.name in shards]
    whole = [parameter for parameter in trained if parameter.name not in shards]
    whole.sort(key=lambda parameter: not decays(parameter))  # a bucket decays or does not
    group = world.group("fsdp")
    buckets = plan(items(whole), megabytes, group.size)
    values = {parameter.name: parameter for parameter in whole}
    flats = []
    for bucket in buckets:
        shard = Shard(bucket, group.index, group.size)
        numbers = shard.of(lambda name: values[name].asnumpy())
        flat = Parameter(Tensor(numbers), name=f"shard.{bucket.items[0].name}")
        flat.decays = bucket.decays
        flats.append(Flat(flat, shard))
    flats += [Flat(parameter, shards[parameter.name]) for parameter in own]
    return Layout(whole, own, buckets, flats, world.mesh.index("data"))


def shares(layout: Layout, optimizer: "SharedOptimizer", averages: Sequence[Parameter]) -> Shares:
    """What of this device's a checkpoint keeps, by the names it has on a single one."""
    flats, inner = layout.flats, optimizer.inner
    joint, own = flats[: len(layout.buckets)], flats[len(layout.buckets) :]
    narrow = frozenset(parameter.name for parameter in layout.trained if parameter.dtype != ms.float32)
    wide = frozenset(parameter.name for parameter in layout.trained) - narrow

    def portions(parameters: Sequence[Parameter]) -> list[Portion]:
        """Of what there is once for every flat parameter, under a prefix to its name."""
        of_flats = zip(parameters, flats * (len(parameters) // len(flats)))
        return [Portion(one, flat.shard, one.name.removesuffix(flat.parameter.name)) for one, flat in of_flats]

    state = portions(inner.moments)
    state += [Portion(flat.parameter, flat.shard, "master.", narrow) for flat in joint]
    copies = {flat.parameter.name: flat for flat in own}
    state += [Portion(copy, copies[name].shard, "master.") for name, copy in inner.of_narrow.items()]
    shard = flats[0].shard
    return Shares(
        weights=[Portion(flat.parameter, flat.shard) for flat in own],
        averages=portions(averages),
        state=state,
        published=[Portion(flat.parameter, flat.shard, only=wide) for flat in joint],
        index=shard.index,
        count=shard.count,
        writes=layout.replica == 0,
    )


class SharedOptimizer(nn.Cell):
    """An optimizer of this device's parts of the weights, and of the way back into the network.

    To the step it is an ``Optimizer``. ``publish``, after an update, gathers the parts of all devices and fills the
    whole weights of the network.
    """

    def __init__(self, layout: Layout, world: World, build: Callable[[list[Parameter]], Optimizer]):
        super().__init__(auto_prefix=False)
        self.inner = build([flat.parameter for flat in layout.flats])
        self.trained = ParameterTuple(layout.trained)
        self.masters = self.inner.masters
        self.parts = ParameterTuple([flat.parameter for flat in layout.flats[: len(layout.buckets)]])
        self.buckets = Buckets(layout.buckets)
        self.gather = AllGather(world.group("fsdp"))

    @property
    def taken(self) -> Sequence[Parameter]:
        """What each of the gradients it takes is of; a bucket goes by the name of its first weight."""
        return self.inner.trained

    @property
    def state(self) -> list[Parameter]:
        """What of it every device has whole."""
        return [self.inner.updates]

    def wide(self, parameters: list[Parameter]) -> list[Parameter]:
        """The float32 numbers behind these flat ones."""
        return self.inner.wide(parameters)

    def construct(self, gradients: tuple[Tensor, ...], lr: Tensor, factor: Tensor | None = None) -> Tensor:
        return self.inner(gradients, lr, factor)

    def publish(self, after: Tensor) -> Tensor:
        """Fill the network's weights; ``after`` is what the update returned. Returns it when that is done."""
        for index, (first, last) in enumerate(self.buckets.bounds):
            flat = self.gather(ops.depend(self.parts[index], after))
            after = ops.depend(after, self.buckets.fill(index, flat, self.trained[first:last]))
        return after


class SharingExchange(Exchange):
    """Of the mean gradients every device gets its own parts: a ReduceScatter a bucket in place of the AllReduce.

    ``early``: gradients are shared out batch after batch (stage 2 and 3), not once a step as their sums (stage 1).
    Between the places of axis data, which have the same parts, these are summed up by an AllReduce.
    """

    def __init__(self, world: World, layout: Layout, megabytes: float, early: bool):
        super().__init__(world, layout.whole, megabytes)
        self.early = early
        self.whole = len(layout.whole)
        self.buckets = Buckets(layout.buckets)
        self.scatter = ReduceScatter(world.group("fsdp"))
        self.over_fsdp, self.over_data = AllReduce(world.group("fsdp")), AllReduce(world.group("data"))
        self.replicas = world.mesh.degree("data")
        parts = [Item(part.name, tuple(part.shape), decays=True) for part in layout.shards]
        self.of_shards = Buckets(plan(parts, megabytes)) if parts and self.replicas > 1 else None

    def construct(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The gradients of this device's part of the batch -> the means' parts, flat, in float32."""
        found = ()
        for bucket in self.buckets(gradients[: self.whole]):
            found = found + (self.over_data(self.scatter(bucket)) / self.parts,)
        own = gradients[self.whole :]  # these are means over fsdp already
        if self.of_shards is not None:
            joined = ()
            for bucket in self.of_shards(own):
                joined = joined + (self.over_data(bucket) / self.replicas,)
            own = self.of_shards.divide(joined, own)
        return found + own

    def square_sums(self, sums: Tensor) -> Tensor:
        """Those of the whole buckets and weights, from those of this device's parts."""
        return self.over_fsdp(sums)
