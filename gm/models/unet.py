"""The UNet of Stable Diffusion: one class for SD 1.x, 2.x, SDXL base and refiner, SSD-1B and Vega.

Module tree and names are those of the original code (CompVis/Stability ``openaimodel.py``), so parameter names are the
keys of the original checkpoints. What differs between the models is data: ``UNetArchitecture``.
"""

import mindspore as ms
from mindspore import Tensor, nn, ops

from gm.models.architecture import HEAD_WIDTH, UNetArchitecture
from gm.models.attention import CrossAttention
from gm.models.layers import (
    ChannelShift,
    Conv2d,
    GatedGELU,
    GroupNorm,
    Identity,
    LayerNorm,
    Linear,
    Projection,
    Purpose,
    Sharing,
    SiLU,
    UpsampleNearest,
    sinusoidal_embedding,
    stands_in,
    zeroed,
)
from gm.models.repeated import compiled_once
from gm.models.shared_block import shared_block


class ResidualBlock(nn.Cell):
    """Two 3x3 convolutions with the time embedding added between: (B, C, H, W), (B, T) -> (B, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, time_dim: int, groups: int):
        super().__init__()
        self.in_layers = nn.CellList(
            [GroupNorm(groups, in_channels, silu=True), Identity(), Conv2d(in_channels, out_channels, 3, padding=1)]
        )
        self.emb_layers = nn.CellList([SiLU(), Linear(time_dim, out_channels)])
        self.shift = ChannelShift()
        self.out_layers = nn.CellList(
            [
                GroupNorm(groups, out_channels, silu=True),
                Identity(),
                Identity(),
                zeroed(Conv2d(out_channels, out_channels, 3, padding=1)),
            ]
        )
        self.skip_connection = Identity() if in_channels == out_channels else Conv2d(in_channels, out_channels, 1)

    def construct(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.in_layers[2](self.in_layers[0](x))
        shift = self.emb_layers[1](self.emb_layers[0](time))
        h = self.shift(h, shift)
        h = self.out_layers[3](self.out_layers[0](h))
        return self.skip_connection(x) + h


class GEGLU(nn.Cell):
    """``a * gelu(b)`` of one projection split in two (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.proj = Linear(in_features, 2 * out_features)
        self.gate = GatedGELU()

    def construct(self, x: Tensor) -> Tensor:
        return self.gate(self.proj(x))


class FeedForward(nn.Cell):
    """GEGLU to four times the width, and back."""

    def __init__(self, channels: int):
        super().__init__()
        self.net = nn.CellList([GEGLU(channels, 4 * channels), Identity(), Linear(4 * channels, channels)])

    def construct(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class TransformerBlock(Sharing):
    """Self-attention, cross-attention to the text, feed-forward; each with a residual and a norm before it."""

    @compiled_once
    def __init__(self, channels: int, context_dim: int, heads: int):
        super().__init__()
        self.attn1 = CrossAttention(channels, channels, heads)
        self.ff = FeedForward(channels)
        self.attn2 = CrossAttention(channels, context_dim, heads)
        self.norm1 = LayerNorm(channels)
        self.norm2 = LayerNorm(channels)
        self.norm3 = LayerNorm(channels)
        if stands_in("transformer_block") and not Purpose.inference:
            self.shared = shared_block(heads, channels // heads)

    def construct(self, x: Tensor, context: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        if self.shared is not None and not isinstance(context, tuple):
            return self.by_shared(x, context)
        # Rows of numbers from here on, which each layer would have to make.
        batch, rows = x.shape[0], x.reshape(-1, x.shape[2])
        if not isinstance(context, tuple):
            context = context.reshape(-1, context.shape[2])
        normed = self.norm1(rows)
        rows = rows + self.attn1(normed, normed, batch)
        rows = rows + self.attn2(self.norm2(rows), context, batch)
        return (rows + self.ff(self.norm3(rows))).reshape(x.shape)

    def by_shared(self, x: Tensor, context: Tensor) -> Tensor:
        one, two, feed = self.attn1, self.attn2, self.ff.net
        return self.shared(
            x,
            context,
            self.norm1.weight,
            self.norm1.bias,
            one.to_q.weight,
            one.to_k.weight,
            one.to_v.weight,
            one.to_out[0].weight,
            one.to_out[0].bias,
            self.norm2.weight,
            self.norm2.bias,
            two.to_q.weight,
            two.to_k.weight,
            two.to_v.weight,
            two.to_out[0].weight,
            two.to_out[0].bias,
            self.norm3.weight,
            self.norm3.bias,
            feed[0].proj.weight,
            feed[0].proj.bias,
            feed[2].weight,
            feed[2].bias,
        )


class SpatialTransformer(nn.Cell):
    """Transformer blocks over the pixels of a feature map: (B, C, H, W), (B, M, context) -> (B, C, H, W).

    In place of the context its ``states`` will do.
    """

    def __init__(self, channels: int, context_dim: int, heads: int, depth: int, groups: int, linear: bool):
        super().__init__()
        self.linear = linear
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, channels) if linear else Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.CellList([TransformerBlock(channels, context_dim, heads) for _ in range(depth)])
        self.proj_out = zeroed(Linear(channels, channels) if linear else Conv2d(channels, channels, 1))

    def states(self, context: Tensor, batch: int) -> tuple[Tensor, ...]:
        """Keys and values of the context's rows (B * M, context) for each block: two tensors a block."""
        states = ()
        for block in self.transformer_blocks:
            states = states + block.attn2.states(context)
        return states

    def construct(self, x: Tensor, context: Tensor | tuple[Tensor, ...]) -> Tensor:
        batch, channels, height, width = x.shape
        h = self.norm(x)
        if not self.linear:
            h = self.proj_in(h)
        h = h.reshape(batch, channels, height * width).transpose(0, 2, 1)
        if self.linear:
            h = self.proj_in(h.reshape(-1, channels)).reshape(h.shape)
        for index, block in enumerate(self.transformer_blocks):
            h = block(h, context[2 * index : 2 * index + 2] if isinstance(context, tuple) else context)
        if self.linear:
            h = self.proj_out(h.reshape(-1, channels)).reshape(h.shape)
        h = h.transpose(0, 2, 1).reshape(batch, channels, height, width)
        if not self.linear:
            h = self.proj_out(h)
        return x + h


class Downsample(nn.Cell):
    """Halve height and width by a strided convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.op = Conv2d(channels, channels, 3, stride=2, padding=1)

    def construct(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Cell):
    """By repetition to the size of the level above, which is twice its own or one less; then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)
        self.double = UpsampleNearest()

    def construct(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = self.double(x)
        if x.shape[2:] != size:  # halving an odd side rounded up
            x = x[:, :, : size[0], : size[1]]
        return self.conv(x)


Layers = list[tuple[str, nn.Cell]]  # each with what it takes besides x: "time", "context", "size" or "nothing"


def _numbered(stages: list[Layers]) -> tuple[nn.CellList, tuple[tuple[str, ...], ...]]:
    """Cells under the names the original keys count them by, and what each of them takes."""
    cells = nn.CellList([nn.CellList([cell for _, cell in layers]) for layers in stages])
    return cells, tuple(tuple(takes for takes, _ in layers) for layers in stages)


def _places(stages: list[nn.CellList]) -> tuple[tuple[int, int], ...]:
    """Where the states of each stage begin and end among those of all."""
    places, end = [], 0
    for layers in stages:
        first = end
        end += sum(2 * len(layer.transformer_blocks) for layer in layers if isinstance(layer, SpatialTransformer))
        places.append((first, end))
    return tuple(places)


class UNet(nn.Cell):
    """Predicts noise, v or x0 from noisy latents.

    ``construct(latents (B, 4, H/8, W/8), timesteps (B,), context (B, 77, C), vector (B, V) or None)`` returns a tensor
    of the latents' shape and type. ``vector`` is the pooled text state joined with the embedded size numbers, and
    ``guidance`` (B, G) the embedded guidance scale, of a model that was distilled to know it
    (``gm.diffusion.guidance.embedded``). Between the two it computes in ``dtype`` (``gm.models.precision``).

    Who asks for many predictions under the same conditions computes ``states`` and ``told`` once, and then ``denoise``.
    """

    def __init__(self, arch: UNetArchitecture):
        super().__init__()
        self.arch = arch
        self.dtype = ms.float32
        first, time_dim = arch.channels[0], arch.time_dim
        self.time_embed = nn.CellList([Linear(first, time_dim), SiLU(), Linear(time_dim, time_dim)])
        if arch.guidance_dim is not None:
            self.guidance_projection = Projection(arch.guidance_dim, first)
        if arch.vector_dim is not None:
            label = nn.CellList([Linear(arch.vector_dim, time_dim), SiLU(), Linear(time_dim, time_dim)])
            self.label_emb = nn.CellList([label])
        stages = [[("nothing", Conv2d(arch.in_channels, first, 3, padding=1))]]
        skips = [first]
        channels = first
        for level, out_channels in enumerate(arch.channels):
            for depth in arch.down_depths[level]:
                stages.append(self._block(channels, out_channels, depth))
                channels = out_channels
                skips.append(channels)
            if level < len(arch.channels) - 1:
                stages.append([("nothing", Downsample(channels))])
                skips.append(channels)
        self.input_blocks, self.input_takes = _numbered(stages)

        middle = self._block(channels, channels, arch.mid_depth or 0)
        if arch.mid_depth is not None:
            middle.append(("time", ResidualBlock(channels, channels, time_dim, arch.norm_groups)))
        (self.middle_block,), (self.middle_takes,) = _numbered([middle])

        stages = []
        levels = range(len(arch.channels))
        for level, depths in zip(reversed(levels), arch.up_depths):
            for index, depth in enumerate(depths):
                block = self._block(channels + skips.pop(), arch.channels[level], depth)
                channels = arch.channels[level]
                if level and index == len(depths) - 1:
                    block.append(("size", Upsample(channels)))
                stages.append(block)
        self.output_blocks, self.output_takes = _numbered(stages)
        self.places = _places([*self.input_blocks, self.middle_block, *self.output_blocks])
        self.out = nn.CellList(
            [
                GroupNorm(arch.norm_groups, first, silu=True),
                Identity(),
                zeroed(Conv2d(first, arch.out_channels, 3, padding=1)),
            ]
        )

    def _block(self, in_channels: int, out_channels: int, depth: int) -> Layers:
        arch = self.arch
        layers = [("time", ResidualBlock(in_channels, out_channels, arch.time_dim, arch.norm_groups))]
        if depth:
            heads = arch.num_heads or out_channels // HEAD_WIDTH
            transformer = SpatialTransformer(
                out_channels, arch.context_dim, heads, depth, arch.norm_groups, arch.linear_projection
            )
            layers.append(("context", transformer))
        return layers

    def construct(
        self,
        latents: Tensor,
        timesteps: Tensor,
        context: Tensor,
        vector: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        label, guidance = self.told(vector, guidance)
        return self.denoise(latents, timesteps, context.astype(self.dtype), label, guidance)

    def states(self, context: Tensor) -> tuple[Tensor, ...]:
        """Keys and values of the context for each transformer block of the network: two tensors a block."""
        batch, context = context.shape[0], context.astype(self.dtype).reshape(-1, context.shape[2])
        states = ()
        for layers in self.input_blocks:
            states = states + self.states_of(layers, context, batch)
        states = states + self.states_of(self.middle_block, context, batch)
        for layers in self.output_blocks:
            states = states + self.states_of(layers, context, batch)
        return states

    def told(self, vector: Tensor | None, guidance: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """What is added to the embedded timestep: after its layers, and before them; None where there is nothing."""
        if self.arch.vector_dim is not None:
            label = self.label_emb[0]
            vector = label[2](label[1](label[0](vector.astype(self.dtype))))
        if guidance is not None:
            guidance = self.guidance_projection(guidance.astype(self.dtype))
        return vector, guidance

    def denoise(
        self,
        latents: Tensor,
        timesteps: Tensor,
        context: Tensor | tuple[Tensor, ...],
        label: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """``construct`` with what ``told`` returns, and the ``states`` of the context, or itself in ``dtype``."""
        time = sinusoidal_embedding(timesteps, self.arch.channels[0]).astype(self.dtype)
        if guidance is not None:
            time = time + guidance
        time = self.time_embed[2](self.time_embed[1](self.time_embed[0](time)))
        if label is not None:
            time = time + label
        x = latents.astype(self.dtype)
        skips = ()
        for index, layers in enumerate(self.input_blocks):
            x = self.run(layers, self.input_takes[index], x, time, self.part(context, index))
            skips = skips + (x,)
        middle = len(self.input_blocks)
        x = self.run(self.middle_block, self.middle_takes, x, time, self.part(context, middle))
        for index, layers in enumerate(self.output_blocks):
            x = ops.concat((x, skips[len(skips) - 1 - index]), axis=1)
            above = skips[max(len(skips) - 2 - index, 0)]  # where this block ends in an Upsample, of the next level
            attended = self.part(context, middle + 1 + index)
            x = self.run(layers, self.output_takes[index], x, time, attended, above.shape[2:])
        return self.out[2](self.out[0](x)).astype(latents.dtype)

    def states_of(self, layers: nn.CellList, context: Tensor, batch: int) -> tuple[Tensor, ...]:
        states = ()
        for layer in layers:
            if isinstance(layer, SpatialTransformer):
                states = states + layer.states(context, batch)
        return states

    def part(self, context: Tensor | tuple[Tensor, ...], stage: int) -> Tensor | tuple[Tensor, ...]:
        """What the blocks of a stage attend to."""
        if isinstance(context, tuple):
            first, last = self.places[stage]
            return context[first:last]
        return context

    def run(
        self,
        layers: nn.CellList,
        takes: tuple[str, ...],
        x: Tensor,
        time: Tensor,
        context: Tensor | tuple[Tensor, ...],
        size: tuple[int, int] = (),
    ) -> Tensor:
        for index, layer in enumerate(layers):
            if takes[index] == "time":
                x = layer(x, time)
            elif takes[index] == "context":
                x = layer(x, context)
            elif takes[index] == "size":
                x = layer(x, size)
            else:
                x = layer(x)
        return x
