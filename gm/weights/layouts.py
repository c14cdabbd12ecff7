"""The two ways of naming one network: original checkpoints and diffusers/transformers, as rules both ways.

A rule is a pair of module names; a parameter keeps what follows. Where the two also shape values differently (fused
q, k, v of open_clip; its transposed projection; 1x1 convolutions of the autoencoder's attention), the functions here
lay a view over the tensor, so nothing is read before it is written.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from gm.errors import SuiteError
from gm.models.architecture import AutoencoderArchitecture, UNetArchitecture
from gm.weights.dtypes import cast
from gm.weights.sources import (
    ArraySource,
    JoinedSource,
    ReshapedSource,
    RowsSource,
    Source,
    TransposedSource,
)

# OpenCLIP keeps the scale of its contrastive loss at most at ln 100, where its released models ended; transformers'
# text models leave it out.
LOGIT_SCALE = np.float32(np.log(100.0))

UNET_ENDS = [
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("time_embed.cond_proj", "time_embedding.cond_proj"),
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
]
UNET_RESIDUAL = [
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
]
AUTOENCODER_RESIDUAL = [(name, name) for name in ("norm1", "conv1", "norm2", "conv2")] + [
    ("nin_shortcut", "conv_shortcut")
]
AUTOENCODER_ATTENTION = [("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")]
OLD_AUTOENCODER_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OPEN_CLIP_LAYER = [
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
    ("attn.out_proj", "self_attn.out_proj"),
]
OPEN_CLIP_ENDS = [
    ("token_embedding", "text_model.embeddings.token_embedding"),
    ("ln_final", "text_model.final_layer_norm"),
]
QKV = ("q_proj", "k_proj", "v_proj")


class Renaming:
    """Pairs of module names (original, diffusers), applied to whole parameter names in either direction."""

    def __init__(self, pairs: Iterable[tuple[str, str]]):
        pairs = list(pairs)
        self._to_diffusers = dict(pairs)
        self._to_original = {theirs: ours for ours, theirs in pairs}

    def to_diffusers(self, name: str) -> str | None:
        """The diffusers name of an original one; None if no rule covers it."""
        return _renamed(name, self._to_diffusers)

    def to_original(self, name: str) -> str | None:
        """The original name of a diffusers one; None if no rule covers it."""
        return _renamed(name, self._to_original)


def _renamed(name: str, table: Mapping[str, str]) -> str | None:
    module, rest = name, ""
    while module:
        if module in table:
            return table[module] + rest
        module, dot, last = module.rpartition(".")
        rest = dot + last + rest
    return None


@dataclass(frozen=True)
class UNetTopology:
    """What the numbering of a UNet's modules depends on.

    ``down`` and ``up``: residual blocks per level, in the order of computation; ``attends``: whether the last block of
    each ``up`` level has attention, behind which the upsampling is numbered.
    """

    down: tuple[int, ...]
    up: tuple[int, ...]
    attends: tuple[bool, ...]

    @classmethod
    def of(cls, arch: UNetArchitecture) -> "UNetTopology":
        return cls(
            tuple(map(len, arch.down_depths)),
            tuple(map(len, arch.up_depths)),
            tuple(depths[-1] > 0 for depths in arch.up_depths),
        )

    @classmethod
    def from_diffusers(cls, names: Iterable[str]) -> "UNetTopology":
        """From the names in a diffusers UNet."""
        modules = {".".join(name.split(".")[:4]) for name in names}

        def counts(blocks: str) -> tuple[int, ...]:
            found = []
            while f"{blocks}.{len(found)}.resnets.0" in modules:
                number = 0
                while f"{blocks}.{len(found)}.resnets.{number}" in modules:
                    number += 1
                found.append(number)
            return tuple(found)

        up = counts("up_blocks")
        attends = tuple(f"up_blocks.{level}.attentions.{blocks - 1}" in modules for level, blocks in enumerate(up))
        return cls(counts("down_blocks"), up, attends)

    def renaming(self) -> Renaming:
        pairs = list(UNET_ENDS)

        def residual(original: str, diffusers: str) -> None:
            pairs.extend((f"{original}.{ours}", f"{diffusers}.{theirs}") for ours, theirs in UNET_RESIDUAL)

        index = 1
        for level, blocks in enumerate(self.down):
            for block in range(blocks):
                residual(f"input_blocks.{index}.0", f"down_blocks.{level}.resnets.{block}")
                pairs.append((f"input_blocks.{index}.1", f"down_blocks.{level}.attentions.{block}"))
                index += 1
            if level < len(self.down) - 1:
                pairs.append((f"input_blocks.{index}.0.op", f"down_blocks.{level}.downsamplers.0.conv"))
                index += 1
        residual("middle_block.0", "mid_block.resnets.0")
        pairs.append(("middle_block.1", "mid_block.attentions.0"))
        residual("middle_block.2", "mid_block.resnets.1")
        index = 0
        for level, blocks in enumerate(self.up):
            for block in range(blocks):
                residual(f"output_blocks.{index}.0", f"up_blocks.{level}.resnets.{block}")
                attends = block < blocks - 1 or self.attends[level]
                if attends:
                    pairs.append((f"output_blocks.{index}.1", f"up_blocks.{level}.attentions.{block}"))
                index += 1
            if level < len(self.up) - 1:
                place = 2 if self.attends[level] else 1
                pairs.append((f"output_blocks.{index - 1}.{place}.conv", f"up_blocks.{level}.upsamplers.0.conv"))
        return Renaming(pairs)


def autoencoder_renaming(levels: int, blocks: int) -> Renaming:
    """Rules for an autoencoder of this many resolutions, with ``blocks`` residual blocks each in the encoder.

    The original counts ``up`` from the highest resolution, diffusers from the lowest.
    """
    pairs = [(name, name) for name in ("quant_conv", "post_quant_conv")]
    for half in ("encoder", "decoder"):
        pairs += [(f"{half}.{name}", f"{half}.{name}") for name in ("conv_in", "conv_out")]
        pairs.append((f"{half}.norm_out", f"{half}.conv_norm_out"))
        pairs += [
            (f"{half}.mid.attn_1.{ours}", f"{half}.mid_block.attentions.0.{theirs}")
            for ours, theirs in AUTOENCODER_ATTENTION
        ]
        for index in (0, 1):
            pairs += [
                (f"{half}.mid.block_{index + 1}.{ours}", f"{half}.mid_block.resnets.{index}.{theirs}")
                for ours, theirs in AUTOENCODER_RESIDUAL
            ]
    for level in range(levels):
        down = (f"encoder.down.{level}", f"encoder.down_blocks.{level}", "downsample", blocks)
        up = (f"decoder.up.{level}", f"decoder.up_blocks.{levels - 1 - level}", "upsample", blocks + 1)
        for original, diffusers, resample, count in (down, up):
            pairs.append((f"{original}.{resample}.conv", f"{diffusers}.{resample}rs.0.conv"))
            for block in range(count):
                pairs += [
                    (f"{original}.block.{block}.{inner}", f"{diffusers}.resnets.{block}.{their_inner}")
                    for inner, their_inner in AUTOENCODER_RESIDUAL
                ]
    return Renaming(pairs)


def open_clip_renaming(layers: int) -> Renaming:
    """Rules for the modules of an open_clip text tower that transformers keeps whole."""
    pairs = list(OPEN_CLIP_ENDS)
    for layer in range(layers):
        pairs += [
            (f"transformer.resblocks.{layer}.{ours}", f"text_model.encoder.layers.{layer}.{theirs}")
            for ours, theirs in OPEN_CLIP_LAYER
        ]
    return Renaming(pairs)


Sources = dict[str, Source]


def _rename_all(sources: Mapping[str, Source], rename: Callable[[str], str | None]) -> Sources:
    renamed: Sources = {}
    for name, source in sources.items():
        new = rename(name)
        if new is None:
            raise SuiteError(f"{name} has no place in a network of this family")
        renamed[new] = source
    return renamed


def unet_from_diffusers(sources: Sources) -> Sources:
    """Original names, without their prefix, of a diffusers UNet."""
    return _rename_all(sources, UNetTopology.from_diffusers(sources).renaming().to_original)


def unet_to_diffusers(sources: Sources, arch: UNetArchitecture) -> Sources:
    """Diffusers names of a UNet with original ones, given without their prefix."""
    return _rename_all(sources, UNetTopology.of(arch).renaming().to_diffusers)


def autoencoder_from_diffusers(sources: Sources) -> Sources:
    """Original names, without their prefix, of a diffusers AutoencoderKL; also of one saved before 2023."""
    down = [name.split(".") for name in sources if name.startswith("encoder.down_blocks.") and ".resnets." in name]
    levels, blocks = (len({name[place] for name in down}) for place in (2, 4))
    renaming = autoencoder_renaming(levels, blocks)

    def to_original(name: str) -> str | None:
        module, _, last = name.rpartition(".")
        parent, _, attention = module.rpartition(".")
        if attention in OLD_AUTOENCODER_ATTENTION and parent.endswith("attentions.0"):
            name = f"{parent}.{OLD_AUTOENCODER_ATTENTION[attention]}.{last}"
        return renaming.to_original(name)

    renamed = _rename_all(sources, to_original)
    for name, source in renamed.items():
        if ".mid.attn_1." in name and len(source.shape) == 2:
            renamed[name] = ReshapedSource(source, (*source.shape, 1, 1))
    return renamed


def autoencoder_to_diffusers(sources: Sources, arch: AutoencoderArchitecture) -> Sources:
    """Diffusers names of an autoencoder with original ones, given without their prefix."""
    flattened = {
        name: ReshapedSource(source, source.shape[:2]) if ".mid.attn_1." in name and len(source.shape) == 4 else source
        for name, source in sources.items()
    }
    return _rename_all(flattened, autoencoder_renaming(len(arch.channels), arch.blocks_per_level).to_diffusers)


def clip_from_diffusers(sources: Sources) -> Sources:
    """Original names, without their prefix, of a transformers CLIPTextModel; transformers 5 drops ``text_model.``."""
    whole = ("text_model.", "text_projection.")
    return {name if name.startswith(whole) else f"text_model.{name}": source for name, source in sources.items()}


def open_clip_from_diffusers(sources: Sources) -> Sources:
    """Original (open_clip) names, without their prefix, of a transformers text model converted from open_clip."""
    sources = clip_from_diffusers(sources)
    layers = len({name.split(".")[3] for name in sources if name.startswith("text_model.encoder.layers.")})
    renaming = open_clip_renaming(layers)
    renamed: Sources = {}
    for name, source in sources.items():
        if name == "text_projection.weight":
            renamed["text_projection"] = TransposedSource(source)
        elif name == "text_model.embeddings.position_embedding.weight":
            renamed["positional_embedding"] = source
        elif any(f".self_attn.{projection}." in name for projection in QKV):
            module, _, kind = name.rpartition(".")
            layer = module.split(".")[3]
            if module.endswith("q_proj"):
                parts = [_taken(sources, f"{module.rpartition('.')[0]}.{part}.{kind}") for part in QKV]
                renamed[f"transformer.resblocks.{layer}.attn.in_proj_{kind}"] = JoinedSource(parts)
        else:
            renamed |= _rename_all({name: source}, renaming.to_original)
    if "text_projection" in renamed:
        tag = renamed["text_projection"].dtype
        renamed["logit_scale"] = ArraySource(cast(np.asarray(LOGIT_SCALE), "F32", tag), tag)
    return renamed


def open_clip_to_diffusers(sources: Sources, layers: int, projection: bool) -> Sources:
    """Transformers names of the first ``layers`` layers of an open_clip text tower, given without its prefix."""
    renaming = open_clip_renaming(layers)
    renamed: Sources = {}
    for name, source in sources.items():
        level = name.split(".")
        if level[:2] == ["transformer", "resblocks"] and int(level[2]) >= layers:
            continue
        if name == "text_projection":
            if projection:
                renamed["text_projection.weight"] = TransposedSource(source)
        elif name == "positional_embedding":
            renamed["text_model.embeddings.position_embedding.weight"] = source
        elif level[-1] in ("in_proj_weight", "in_proj_bias"):
            kind = level[-1].removeprefix("in_proj_")
            for index, part in enumerate(QKV):
                target = f"text_model.encoder.layers.{level[2]}.self_attn.{part}.{kind}"
                renamed[target] = RowsSource(source, index, len(QKV))
        elif name != "logit_scale":
            renamed |= _rename_all({name: source}, renaming.to_diffusers)
    return renamed


def _taken(sources: Sources, name: str) -> Source:
    if name not in sources:
        raise SuiteError(f"{name} is missing: the folder is incomplete, download it again")
    return sources[name]
