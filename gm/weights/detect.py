"""The weights know what they are: the architecture of a checkpoint from its keys and shapes alone."""

from collections.abc import Mapping
from dataclasses import replace

from gm.errors import SuiteError
from gm.models.architecture import (
    COND_STAGE,
    EMBEDDERS,
    SD_SCALE_FACTOR,
    AutoencoderArchitecture,
    ModelArchitecture,
    TextEncoderArchitecture,
    UNetArchitecture,
)
from gm.weights.keys import AUTOENCODER, UNET

Shapes = Mapping[str, tuple[int, ...]]

SIZE_EMBEDDING = 256  # channels per size number
SD_CHANNELS = (320, 640, 1280, 1280)

SDXL_REFINER = UNetArchitecture(
    channels=(384, 768, 1536, 1536),
    down_depths=((0, 0), (4, 4), (4, 4), (0, 0)),
    mid_depth=4,
    up_depths=((0, 0, 0), (4, 4, 4), (4, 4, 4), (0, 0, 0)),
    context_dim=1280,
    vector_dim=2560,
)
SSD_1B = UNetArchitecture(
    down_depths=((0, 0), (2, 2), (4, 4)), mid_depth=None, up_depths=((4, 4, 10), (2, 1, 1), (0, 0, 0))
)
VEGA = UNetArchitecture(
    down_depths=((0, 0), (1, 1), (2, 2)), mid_depth=None, up_depths=((2, 2, 2), (1, 1, 1), (0, 0, 0))
)
SD_1 = UNetArchitecture(
    channels=SD_CHANNELS,
    down_depths=((1, 1), (1, 1), (1, 1), (0, 0)),
    mid_depth=1,
    up_depths=((0, 0, 0), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    context_dim=768,
    vector_dim=None,
    num_heads=8,
    linear_projection=False,
)
SD_2 = replace(SD_1, context_dim=1024, num_heads=None, linear_projection=True)
KNOWN_UNETS = {
    "sdxl-base": UNetArchitecture(),
    "sdxl-refiner": SDXL_REFINER,
    "ssd-1b": SSD_1B,
    "vega": VEGA,
    "sd-1": SD_1,
    "sd-2": SD_2,
}


def detect(shapes: Shapes) -> ModelArchitecture:
    """The architecture of a checkpoint with these original keys; parts that are not there are None or ().

    Sizes that no released model has are "sdxl-like" with a pooled and size input, else "sd-2" with linear projections
    and "sd-1" without.

    Raises:
        SuiteError: no part of a Stable Diffusion checkpoint is there, or a part has not the keys of its kind. The
            message says what the keys look like instead, not which file they are from.
    """
    unet = _detect_unet(shapes)
    encoders = _detect_text_encoders(shapes)
    autoencoder = _detect_autoencoder(shapes)
    if unet is None and autoencoder is None and not encoders:
        raise SuiteError(f"this is {describe(shapes)}: give a checkpoint of Stable Diffusion (original or diffusers)")
    name = _name(shapes, unet, encoders)
    if autoencoder and name in ("sd-1", "sd-2"):
        autoencoder = replace(autoencoder, scale_factor=SD_SCALE_FACTOR)
    return ModelArchitecture(name, unet, autoencoder, encoders, _size_numbers(name, unet, encoders))


def describe(shapes: Shapes) -> str:
    """What keys without any part of a checkpoint look like, in words."""
    names = list(shapes)
    if not names:
        return "a file without tensors"
    if is_adapter(names):
        return "a LoRA or other adapter, not a whole model"
    if any(name.startswith(("down_blocks.", "up_blocks.", "mid_block.")) for name in names):
        return "the UNet of a diffusers folder on its own, take the folder that holds model_index.json"
    if any(name.startswith(("encoder.down_blocks.", "decoder.up_blocks.")) for name in names):
        return "the autoencoder of a diffusers folder on its own, take the folder that holds model_index.json"
    if any(name.startswith("vision_model.") for name in names):
        return "a CLIP, which scores pictures (tools/eval/clip_score.py)"
    if any(name.startswith("text_model.") for name in names):
        return "a text encoder on its own, take the folder that holds model_index.json"
    if any("double_blocks." in name or "joint_blocks." in name for name in names):
        return "a transformer model (FLUX, SD 3), not a UNet"
    if any(name.startswith(("control_model.", "controlnet_")) for name in names):
        return "a ControlNet, not a whole model"
    return f"not a checkpoint of this family, its first keys are {', '.join(names[:3])}"


def is_adapter(names: list[str]) -> bool:
    """Whether keys are those of LoRA, LoHa, LoKr or DoRA adapters."""
    marks = ("lora_", ".lora.", "hada_w", "lokr_w", ".dora_scale")
    return any(mark in name for name in names for mark in marks)


def _name(shapes: Shapes, unet: UNetArchitecture | None, encoders: tuple[TextEncoderArchitecture, ...]) -> str:
    for name, known in KNOWN_UNETS.items():
        if unet and replace(unet, guidance_dim=None) == known:
            return name
    if unet and unet.vector_dim is None:
        return "sd-2" if unet.linear_projection else "sd-1"
    if not unet and any(name.startswith(COND_STAGE) for name in shapes):
        return "sd-1" if encoders[0].layout == "transformers" else "sd-2"
    if not unet and [encoder.width for encoder in encoders] == [768, 1280]:
        return "sdxl-base"
    if not unet and [encoder.width for encoder in encoders] == [1280]:
        return "sdxl-refiner"
    return "sdxl-like"


def _size_numbers(name: str, unet: UNetArchitecture | None, encoders: tuple[TextEncoderArchitecture, ...]) -> int:
    """How many size numbers join the pooled text in the UNet's vector input."""
    if name in ("sd-1", "sd-2"):
        return 0
    if unet and unet.vector_dim and encoders and encoders[-1].pooled:
        return (unet.vector_dim - encoders[-1].projection_dim) // SIZE_EMBEDDING
    return 5 if name == "sdxl-refiner" else 6


class _Part:
    """The keys of one part, without their prefix; a missing one is an error that names it."""

    def __init__(self, shapes: Shapes, prefix: str, kind: str):
        self.prefix, self.kind = prefix, kind
        self.shapes = {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}
        self.levels = set()  # every dotted beginning of a key
        for name in self.shapes:
            end = name.find(".")
            while end >= 0:
                self.levels.add(name[: end + 1])
                end = name.find(".", end + 1)

    def __bool__(self) -> bool:
        return bool(self.shapes)

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        if name not in self.shapes:
            raise SuiteError(f"its {self.kind} lacks {self.prefix}{name}: the file is incomplete or of another family")
        shape = self.shapes[name]
        if len(shape) != rank:
            raise SuiteError(f"{self.prefix}{name} has shape {shape}, of another family of models")
        return shape

    def count(self, pattern: str) -> int:
        """How many numbers from 0 on, put into ``{}`` of ``pattern`` (which ends at a dot), begin a key."""
        number = 0
        while pattern.format(number) in self.levels:
            number += 1
        return number


def _detect_unet(shapes: Shapes) -> UNetArchitecture | None:
    part = _Part(shapes, UNET, "UNet")
    if not part:
        return None
    first, in_channels = part.shape("input_blocks.0.0.weight", 4)[:2]
    depths_of = _transformer_depths(part)

    channels, down = [first], [[]]
    for index in range(1, part.count("input_blocks.{}.")):
        if f"input_blocks.{index}.0.op.weight" in part:
            channels.append(channels[-1])
            down.append([])
        else:
            channels[-1] = part.shape(f"input_blocks.{index}.0.in_layers.2.weight", 4)[0]
            down[-1].append(depths_of.get(f"input_blocks.{index}.1", 0))
    up = [[]]
    for index in range(part.count("output_blocks.{}.")):
        part.shape(f"output_blocks.{index}.0.in_layers.2.weight", 4)
        up[-1].append(depths_of.get(f"output_blocks.{index}.1", 0))
        if any(f"output_blocks.{index}.{place}.conv.weight" in part for place in (1, 2)):
            up.append([])
    with_attention = [block for block, depth in depths_of.items() if depth]
    if not with_attention:
        raise SuiteError("its UNet has no attention to text: it is of another family of models")
    proj_in = f"{with_attention[0]}.proj_in.weight"
    linear = len(part.shapes.get(proj_in, ())) == 2
    vector = part.shape("label_emb.0.0.weight", 2)[1] if "label_emb.0.0.weight" in part else None
    told = "time_embed.cond_proj.weight"
    if "middle_block.1.norm.weight" in part:
        mid_depth = depths_of.get("middle_block.1", 0)
    else:
        part.shape("middle_block.0.in_layers.2.weight", 4)
        mid_depth = None
    unet = UNetArchitecture(
        in_channels=in_channels,
        out_channels=part.shape("out.2.weight", 4)[0],
        channels=tuple(channels),
        down_depths=tuple(map(tuple, down)),
        mid_depth=mid_depth,
        up_depths=tuple(map(tuple, up)),
        context_dim=part.shape(f"{with_attention[0]}.transformer_blocks.0.attn2.to_k.weight", 2)[1],
        vector_dim=vector,
        num_heads=None if linear else 8,
        linear_projection=linear,
        guidance_dim=part.shape(told, 2)[1] if told in part else None,
    )
    if [len(level) for level in reversed(unet.up_depths)] != [len(level) + 1 for level in unet.down_depths]:
        raise SuiteError("the blocks of its UNet do not match each other: the file is incomplete or of another family")
    return unet


def _transformer_depths(part: _Part) -> dict[str, int]:
    """Name of a spatial transformer -> number of its blocks."""
    depths: dict[str, int] = {}
    for name in part.shapes:
        block, found, rest = name.partition(".transformer_blocks.")
        if found:
            depths[block] = max(depths.get(block, 0), int(rest.partition(".")[0]) + 1)
    return depths


def _detect_autoencoder(shapes: Shapes) -> AutoencoderArchitecture | None:
    part = _Part(shapes, AUTOENCODER, "autoencoder")
    if not part:
        return None
    levels = part.count("encoder.down.{}.")
    return AutoencoderArchitecture(
        in_channels=part.shape("encoder.conv_in.weight", 4)[1],
        latent_channels=part.shape("encoder.conv_out.weight", 4)[0] // 2,
        channels=tuple(part.shape(f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in range(levels)),
        blocks_per_level=part.count("encoder.down.0.block.{}."),
    )


def _detect_text_encoders(shapes: Shapes) -> tuple[TextEncoderArchitecture, ...]:
    numbers = {name[len(EMBEDDERS) :].partition(".")[0] for name in shapes if name.startswith(EMBEDDERS)}
    stages = [f"{EMBEDDERS}{number}." for number in sorted(numbers)]
    if any(name.startswith(COND_STAGE) for name in shapes):
        stages.append(COND_STAGE)
    return tuple(_detect_text_encoder(shapes, stage) for stage in stages)


def _detect_text_encoder(shapes: Shapes, stage: str) -> TextEncoderArchitecture:
    # SD 1.x and 2.x are conditioned on normed states, and on nothing pooled.
    alone = stage == COND_STAGE
    part = _Part(shapes, f"{stage}transformer.", "text encoder")
    if part:
        text = "text_model."
        vocabulary, width = part.shape(f"{text}embeddings.token_embedding.weight", 2)
        projection = part.shape("text_projection.weight", 2)[0] if "text_projection.weight" in part else None
        return TextEncoderArchitecture(
            vocab_size=vocabulary,
            width=width,
            layers=part.count(text + "encoder.layers.{}."),
            mlp_dim=part.shape(f"{text}encoder.layers.0.mlp.fc1.weight", 2)[0],
            max_length=part.shape(f"{text}embeddings.position_embedding.weight", 2)[0],
            projection_dim=projection,
            layer="last" if alone else "penultimate",
            final_norm=alone,
        )
    part = _Part(shapes, f"{stage}model.", "text encoder")
    vocabulary, width = part.shape("token_embedding.weight", 2)
    # SDXL pools through it; of SD 2.x it may be missing.
    projection = part.shape("text_projection", 2)[1] if "text_projection" in part or not alone else None
    return TextEncoderArchitecture(
        vocab_size=vocabulary,
        width=width,
        layers=part.count("transformer.resblocks.{}."),
        mlp_dim=part.shape("transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        max_length=part.shape("positional_embedding", 2)[0],
        activation="gelu",
        layout="open_clip",
        projection_dim=projection,
        # Diffusers drops the projection of SD 2.x and, of the layers, the one that SD 2.x does not use.
        layer="last" if alone and projection is None else "penultimate",
        final_norm=alone,
        pooled=not alone,
        pad_token=0,
    )
