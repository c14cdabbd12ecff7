"""Attention and feed-forward layers whose arithmetic several devices divide (axis ``tensor`` of the mesh).

Shoeybi et al. 2019, arXiv 1909.08053, section 3: each device has some of the heads, or of the hidden features, and the
devices' outputs are added up once forward and, for what they had been given, once backward.
"""

from mindspore import Parameter, Tensor, nn

from gm.errors import UsageError
from gm.models.attention import CrossAttention
from gm.models.layers import Linear, generalize
from gm.models.unet import FeedForward, TransformerBlock
from gm.parallel.collectives import AllReduce, Group
from gm.parallel.rules import cut, rule


class Copy(nn.Cell):
    """What all devices have, for each to use a part of: its gradient is the sum of theirs."""

    def __init__(self, group: Group):
        super().__init__(auto_prefix=False)
        self.reduce = AllReduce(group)

    def construct(self, x: Tensor) -> Tensor:
        return x

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        return (self.reduce(dout),)


class Sum(nn.Cell):
    """What the devices have added up: the gradient of each part is that of the sum, which all have."""

    def __init__(self, group: Group):
        super().__init__(auto_prefix=False)
        self.reduce = AllReduce(group)

    def construct(self, x: Tensor) -> Tensor:
        return self.reduce(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        return (dout,)


class _Divided(nn.Cell):
    """A layer of which there is a part here; the bias of its last linear layer is added once, to the sum."""

    def __init__(self, part: nn.Cell, last: Linear, group: Group):
        super().__init__(auto_prefix=False)
        self.part, self.copy, self.sum = part, Copy(group), Sum(group)
        generalize(last)
        bias = last.bias
        del last.bias
        last.bias = None
        self.bias = bias

    def finish(self, x: Tensor) -> Tensor:
        out = self.sum(x)
        return out + self.bias.astype(out.dtype)


class DividedAttention(_Divided):
    """Some of the heads of ``CrossAttention``; ``own``: it attends to its own input."""

    def __init__(self, part: CrossAttention, group: Group, own: bool):
        super().__init__(part, part.to_out[0], group)
        self.own = own

    def construct(self, x: Tensor, context: Tensor, batch: int) -> Tensor:
        x = self.copy(x)
        context = x if self.own else self.copy(context)
        return self.finish(self.part(x, context, batch))


class DividedFeedForward(_Divided):
    """Some of the hidden features of ``FeedForward``."""

    def __init__(self, part: FeedForward, group: Group):
        super().__init__(part, part.net[2], group)

    def construct(self, x: Tensor) -> Tensor:
        return self.finish(self.part(self.copy(x)))


def divide(network: nn.Cell, group: Group) -> dict[str, str]:
    """Leave this device its part of every transformer block of ``network``.

    Returns how each of the divided parameters is, by name (``gm.parallel.rules``).

    Raises:
        UsageError: the devices cannot have equally many heads.
    """
    kinds = {}
    for _, block in list(network.cells_and_names()):
        if not isinstance(block, TransformerBlock):
            continue
        block.by_itself()
        names = {id(parameter): parameter.name for parameter in block.get_parameters()}
        for attention in (block.attn1, block.attn2):
            heads = attention.attention.heads
            if heads % group.size:
                raise UsageError(
                    f"axis tensor of {group.size} devices cannot divide {heads} heads of attention evenly: "
                    "lower --ici_tensor_parallelism"
                )
            attention.attention.heads = heads // group.size
        for _, layer in block.cells_and_names():
            if isinstance(layer, Linear):
                kinds |= _divide_linear(layer, group)
                names |= {id(parameter): parameter.name for parameter in layer.get_parameters()}
        block.attn1 = DividedAttention(block.attn1, group, own=True)
        block.attn2 = DividedAttention(block.attn2, group, own=False)
        block.ff = DividedFeedForward(block.ff, group)
        for parameter in block.get_parameters():
            parameter.name = names[id(parameter)]  # a Cell puts its own name before those of what it is given
    return kinds


def _divide_linear(layer: Linear, group: Group) -> dict[str, str]:
    kinds = {}
    for attribute, parameter in list(layer._params.items()):
        found = rule(parameter.name, "tensor") if parameter is not None else None
        if found is None:
            continue
        values = cut(found.kind, parameter.asnumpy(), group.index, group.size)
        part = Parameter(Tensor(values, parameter.dtype), name=parameter.name, requires_grad=parameter.requires_grad)
        setattr(layer, attribute, part)
        kinds[part.name] = found.kind
    layer.out_features, layer.in_features = layer.weight.shape
    return kinds
