"""How much arithmetic a UNet and its text towers are, counted from their shapes.

A multiplication with its addition is two floating point operations; what is counted are convolutions, linear layers and
the two products of attention, as is usual for model FLOPs (Chowdhery et al. 2022, arXiv 2204.02311, appendix B). Norms,
activations and whatever a device repeats to save memory are not.
"""

from dataclasses import dataclass

from gm.models.architecture import ModelArchitecture, TextEncoderArchitecture, UNetArchitecture

CONTEXT_LENGTH = 77  # tokens of CLIP
BACKWARD = 2  # a backward pass is the forward pass's products twice: once for the inputs, once for the weights


@dataclass(frozen=True)
class Block:
    """A residual block of a UNet and the transformer behind it, of ``depth`` 0 if there is none."""

    pixels: int
    in_channels: int
    out_channels: int
    depth: int


@dataclass(frozen=True)
class Layout:
    """A UNet at one size: its blocks, and its 3x3 convolutions outside of them as (output pixels, in, out)."""

    blocks: list[Block]
    convolutions: list[tuple[int, int, int]]


def layout(arch: UNetArchitecture, height: int, width: int) -> Layout:
    """Walk the network as it computes; ``height`` and ``width`` of the latents."""
    first, pixels = arch.channels[0], height * width
    blocks, convolutions = [], [(pixels, arch.in_channels, first)]
    skips, channels = [first], first
    for level, out_channels in enumerate(arch.channels):
        for depth in arch.down_depths[level]:
            blocks.append(Block(pixels, channels, out_channels, depth))
            channels = out_channels
            skips.append(channels)
        if level < len(arch.channels) - 1:
            pixels //= 4
            convolutions.append((pixels, channels, channels))
            skips.append(channels)
    blocks.append(Block(pixels, channels, channels, arch.mid_depth or 0))
    if arch.mid_depth is not None:
        blocks.append(Block(pixels, channels, channels, 0))
    for level, depths in zip(reversed(range(len(arch.channels))), arch.up_depths):
        for index, depth in enumerate(depths):
            blocks.append(Block(pixels, channels + skips.pop(), arch.channels[level], depth))
            channels = arch.channels[level]
            if level and index == len(depths) - 1:
                pixels *= 4
                convolutions.append((pixels, channels, channels))
    convolutions.append((pixels, first, arch.out_channels))
    return Layout(blocks, convolutions)


def unet_forward(arch: UNetArchitecture, height: int, width: int, context_length: int = CONTEXT_LENGTH) -> int:
    """Floating point operations of one forward pass of one sample; ``height`` and ``width`` of the latents."""
    time_dim = arch.time_dim
    total = _linear(1, arch.channels[0], time_dim) + _linear(1, time_dim, time_dim)
    if arch.guidance_dim is not None:
        total += _linear(1, arch.guidance_dim, arch.channels[0])
    if arch.vector_dim is not None:
        total += _linear(1, arch.vector_dim, time_dim) + _linear(1, time_dim, time_dim)
    whole = layout(arch, height, width)
    total += sum(_convolution(*shape) for shape in whole.convolutions)
    for block in whole.blocks:
        total += _residual_block(block, time_dim) + _transformer(block, arch.context_dim, context_length)
    return total


def text_encoder_forward(arch: TextEncoderArchitecture) -> int:
    """Floating point operations for one text: of the layers that something the UNet is given depends on."""
    tokens, width = arch.max_length, arch.width
    attention = 4 * _linear(tokens, width, width) + 2 * _linear(tokens, width, tokens)
    layer = attention + _linear(tokens, width, arch.mlp_dim) + _linear(tokens, arch.mlp_dim, width)
    if not arch.pooled:
        return arch.layers_below * layer
    return arch.layers * layer + _linear(1, width, arch.projection_dim)


def training(
    arch: ModelArchitecture, height: int, width: int, text_encoders: bool = False, context: int = CONTEXT_LENGTH
) -> int:
    """Floating point operations of a training step for one sample: forward and backward, nothing computed twice.

    ``height`` and ``width`` are those of the latents, ``context`` is how many states of a text the UNet is given. Of
    the UNet, and of the text towers if they are trained, which take 77 tokens at a time.
    """
    forward = unet_forward(arch.unet, height, width, context)
    if text_encoders:
        forward += context // CONTEXT_LENGTH * sum(text_encoder_forward(tower) for tower in arch.text_encoders)
    return (1 + BACKWARD) * forward


def _linear(rows: int, in_features: int, out_features: int) -> int:
    return 2 * rows * in_features * out_features


def _convolution(pixels: int, in_channels: int, out_channels: int, kernel: int = 3) -> int:
    """``pixels`` of the output."""
    return 2 * pixels * in_channels * out_channels * kernel * kernel


def _residual_block(block: Block, time_dim: int) -> int:
    pixels, in_channels, out_channels = block.pixels, block.in_channels, block.out_channels
    flops = _convolution(pixels, in_channels, out_channels) + _convolution(pixels, out_channels, out_channels)
    if in_channels != out_channels:
        flops += _convolution(pixels, in_channels, out_channels, kernel=1)
    return flops + _linear(1, time_dim, out_channels)


def _transformer(block: Block, context_dim: int, context_length: int) -> int:
    """Projections in and out, and ``depth`` blocks of self-attention, cross-attention and a gated feed-forward."""
    if not block.depth:
        return 0
    pixels, channels = block.pixels, block.out_channels
    projection = _linear(pixels, channels, channels)
    keys_and_values = 2 * _linear(context_length, context_dim, channels)
    self_attention = 4 * projection + 2 * _linear(pixels, channels, pixels)
    cross_attention = 2 * projection + keys_and_values + 2 * _linear(pixels, channels, context_length)
    feed_forward = _linear(pixels, channels, 8 * channels) + _linear(pixels, 4 * channels, channels)
    return 2 * projection + block.depth * (self_attention + cross_attention + feed_forward)
