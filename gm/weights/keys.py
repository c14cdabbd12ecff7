"""Every key and shape of a checkpoint, from its architecture alone: what a file of that model must hold.

The names are those of the original code (Stability ``generative-models``, CompVis ``stable-diffusion``), in its order.
"""

from collections.abc import Iterator

from gm.models.architecture import (
    AUTOENCODER,
    COND_STAGE,
    EMBEDDERS,
    UNET,
    AutoencoderArchitecture,
    ModelArchitecture,
    TextEncoderArchitecture,
    UNetArchitecture,
)

Shapes = dict[str, tuple[int, ...]]
Pairs = Iterator[tuple[str, tuple[int, ...]]]

PARTS = {"UNet": (UNET,), "autoencoder": (AUTOENCODER,), "text encoders": (EMBEDDERS, COND_STAGE)}  # of a file
OPTIONAL_ENDINGS = (".logit_scale",)  # no output depends on it, and many files leave it out


def text_encoder_prefix(architecture: ModelArchitecture, index: int) -> str:
    """The part of the keys before ``text_model`` or the open_clip names, of text encoder ``index``."""
    transformers = architecture.text_encoders[index].layout == "transformers"
    return architecture.text_prefixes[index] + ("transformer." if transformers else "model.")


def expected_shapes(architecture: ModelArchitecture) -> Shapes:
    """Key -> shape of all parts the architecture has."""
    shapes: Shapes = {}
    if architecture.unet:
        shapes |= {UNET + name: shape for name, shape in unet_shapes(architecture.unet)}
    if architecture.autoencoder:
        shapes |= {AUTOENCODER + name: shape for name, shape in autoencoder_shapes(architecture.autoencoder)}
    for index, encoder in enumerate(architecture.text_encoders):
        prefix = text_encoder_prefix(architecture, index)
        shapes |= {prefix + name: shape for name, shape in text_encoder_shapes(encoder)}
    return shapes


def _linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Pairs:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def _conv(name: str, inputs: int, outputs: int, kernel: int) -> Pairs:
    yield f"{name}.weight", (outputs, inputs, kernel, kernel)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, channels: int) -> Pairs:
    yield f"{name}.weight", (channels,)
    yield f"{name}.bias", (channels,)


def _residual(name: str, inputs: int, outputs: int, time: int) -> Pairs:
    yield from _norm(f"{name}.in_layers.0", inputs)
    yield from _conv(f"{name}.in_layers.2", inputs, outputs, 3)
    yield from _linear(f"{name}.emb_layers.1", time, outputs)
    yield from _norm(f"{name}.out_layers.0", outputs)
    yield from _conv(f"{name}.out_layers.3", outputs, outputs, 3)
    if inputs != outputs:
        yield from _conv(f"{name}.skip_connection", inputs, outputs, 1)


def _transformer(name: str, width: int, context: int, depth: int, linear: bool) -> Pairs:
    yield from _norm(f"{name}.norm", width)
    yield from _linear(f"{name}.proj_in", width, width) if linear else _conv(f"{name}.proj_in", width, width, 1)
    for index in range(depth):
        block = f"{name}.transformer_blocks.{index}"
        for attention, source in (("attn1", width), ("attn2", context)):
            yield from _linear(f"{block}.{attention}.to_q", width, width, bias=False)
            yield from _linear(f"{block}.{attention}.to_k", source, width, bias=False)
            yield from _linear(f"{block}.{attention}.to_v", source, width, bias=False)
            yield from _linear(f"{block}.{attention}.to_out.0", width, width)
        yield from _linear(f"{block}.ff.net.0.proj", width, 8 * width)  # GEGLU: values and gates
        yield from _linear(f"{block}.ff.net.2", 4 * width, width)
        for norm in ("norm1", "norm2", "norm3"):
            yield from _norm(f"{block}.{norm}", width)
    yield from _linear(f"{name}.proj_out", width, width) if linear else _conv(f"{name}.proj_out", width, width, 1)


def unet_shapes(arch: UNetArchitecture) -> Pairs:
    """Names without the prefix, and shapes, of a UNet."""

    def block(name: str, inputs: int, outputs: int, depth: int) -> Pairs:
        yield from _residual(f"{name}.0", inputs, outputs, arch.time_dim)
        if depth:
            yield from _transformer(f"{name}.1", outputs, arch.context_dim, depth, arch.linear_projection)

    first = arch.channels[0]
    yield from _linear("time_embed.0", first, arch.time_dim)
    yield from _linear("time_embed.2", arch.time_dim, arch.time_dim)
    if arch.guidance_dim is not None:
        yield from _linear("time_embed.cond_proj", arch.guidance_dim, first, bias=False)
    if arch.vector_dim is not None:
        yield from _linear("label_emb.0.0", arch.vector_dim, arch.time_dim)
        yield from _linear("label_emb.0.2", arch.time_dim, arch.time_dim)
    yield from _conv("input_blocks.0.0", arch.in_channels, first, 3)
    skips, width, index = [first], first, 1
    for level, depths in enumerate(arch.down_depths):
        for depth in depths:
            yield from block(f"input_blocks.{index}", width, arch.channels[level], depth)
            width, index = arch.channels[level], index + 1
            skips.append(width)
        if level < len(arch.channels) - 1:
            yield from _conv(f"input_blocks.{index}.0.op", width, width, 3)
            index += 1
            skips.append(width)
    yield from block("middle_block", width, width, arch.mid_depth or 0)
    if arch.mid_depth is not None:
        yield from _residual("middle_block.2", width, width, arch.time_dim)
    index = 0
    for level, depths in zip(reversed(range(len(arch.channels))), arch.up_depths):
        for number, depth in enumerate(depths):
            yield from block(f"output_blocks.{index}", width + skips.pop(), arch.channels[level], depth)
            width = arch.channels[level]
            if level and number == len(depths) - 1:
                yield from _conv(f"output_blocks.{index}.{2 if depth else 1}.conv", width, width, 3)
            index += 1
    yield from _norm("out.0", first)
    yield from _conv("out.2", first, arch.out_channels, 3)


def autoencoder_shapes(arch: AutoencoderArchitecture) -> Pairs:
    """Names without the prefix, and shapes, of a KL autoencoder."""

    def residual(name: str, inputs: int, outputs: int) -> Pairs:
        yield from _norm(f"{name}.norm1", inputs)
        yield from _conv(f"{name}.conv1", inputs, outputs, 3)
        yield from _norm(f"{name}.norm2", outputs)
        yield from _conv(f"{name}.conv2", outputs, outputs, 3)
        if inputs != outputs:
            yield from _conv(f"{name}.nin_shortcut", inputs, outputs, 1)

    def middle(name: str, width: int) -> Pairs:
        yield from residual(f"{name}.block_1", width, width)
        yield from _norm(f"{name}.attn_1.norm", width)
        for projection in ("q", "k", "v", "proj_out"):
            yield from _conv(f"{name}.attn_1.{projection}", width, width, 1)
        yield from residual(f"{name}.block_2", width, width)

    deepest, last = arch.channels[-1], len(arch.channels) - 1
    yield from _conv("encoder.conv_in", arch.in_channels, arch.channels[0], 3)
    width = arch.channels[0]
    for level, channels in enumerate(arch.channels):
        for index in range(arch.blocks_per_level):
            yield from residual(f"encoder.down.{level}.block.{index}", width, channels)
            width = channels
        if level < last:
            yield from _conv(f"encoder.down.{level}.downsample.conv", channels, channels, 3)
    yield from middle("encoder.mid", deepest)
    yield from _norm("encoder.norm_out", deepest)
    yield from _conv("encoder.conv_out", deepest, 2 * arch.latent_channels, 3)
    yield from _conv("decoder.conv_in", arch.latent_channels, deepest, 3)
    yield from middle("decoder.mid", deepest)
    width = deepest
    for level, channels in reversed(list(enumerate(arch.channels))):
        for index in range(arch.blocks_per_level + 1):
            yield from residual(f"decoder.up.{level}.block.{index}", width, channels)
            width = channels
        if level:
            yield from _conv(f"decoder.up.{level}.upsample.conv", channels, channels, 3)
    yield from _norm("decoder.norm_out", width)
    yield from _conv("decoder.conv_out", width, arch.in_channels, 3)
    yield from _conv("quant_conv", 2 * arch.latent_channels, 2 * arch.latent_channels, 1)
    yield from _conv("post_quant_conv", arch.latent_channels, arch.latent_channels, 1)


def text_encoder_shapes(arch: TextEncoderArchitecture) -> Pairs:
    """Names without the prefix, and shapes, of a text tower in its layout."""
    return _clip_shapes(arch) if arch.layout == "transformers" else _open_clip_shapes(arch)


def _clip_shapes(arch: TextEncoderArchitecture) -> Pairs:
    width = arch.width
    yield "text_model.embeddings.token_embedding.weight", (arch.vocab_size, width)
    yield "text_model.embeddings.position_embedding.weight", (arch.max_length, width)
    for index in range(arch.layers):
        layer = f"text_model.encoder.layers.{index}"
        for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from _linear(f"{layer}.self_attn.{projection}", width, width)
        yield from _norm(f"{layer}.layer_norm1", width)
        yield from _linear(f"{layer}.mlp.fc1", width, arch.mlp_dim)
        yield from _linear(f"{layer}.mlp.fc2", arch.mlp_dim, width)
        yield from _norm(f"{layer}.layer_norm2", width)
    yield from _norm("text_model.final_layer_norm", width)
    if arch.projection_dim is not None:
        yield "text_projection.weight", (arch.projection_dim, width)


def _open_clip_shapes(arch: TextEncoderArchitecture) -> Pairs:
    width = arch.width
    yield "positional_embedding", (arch.max_length, width)
    if arch.projection_dim is not None:
        yield "text_projection", (width, arch.projection_dim)
    yield "logit_scale", ()
    for index in range(arch.layers):
        layer = f"transformer.resblocks.{index}"
        yield from _norm(f"{layer}.ln_1", width)
        yield f"{layer}.attn.in_proj_weight", (3 * width, width)
        yield f"{layer}.attn.in_proj_bias", (3 * width,)
        yield from _linear(f"{layer}.attn.out_proj", width, width)
        yield from _norm(f"{layer}.ln_2", width)
        yield from _linear(f"{layer}.mlp.c_fc", width, arch.mlp_dim)
        yield from _linear(f"{layer}.mlp.c_proj", arch.mlp_dim, width)
    yield "token_embedding.weight", (arch.vocab_size, width)
    yield from _norm("ln_final", width)
