"""A weight file in words: what ``inspect_weight.py`` prints."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np

from gm.errors import SuiteError
from gm.models.architecture import ModelArchitecture, TextEncoderArchitecture
from gm.weights.convert import progress, tensor_bytes
from gm.weights.detect import KNOWN_UNETS, describe
from gm.weights.dtypes import is_finite, to_float32
from gm.weights.files import WeightFile, compare, named
from gm.weights.keys import PARTS, Shapes, expected_shapes

FORMAT_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
TITLES = {
    "sdxl-base": "Stable Diffusion XL base",
    "sdxl-refiner": "Stable Diffusion XL refiner",
    "ssd-1b": "Segmind SSD-1B",
    "vega": "Segmind-Vega",
    "sd-1": "Stable Diffusion 1.x",
    "sd-2": "Stable Diffusion 2.x",
    "sdxl-like": "of SDXL's family",
}
INDENT = " " * 15


def report(weights: WeightFile) -> tuple[list[str], bool]:
    """Lines of text, and whether the file is a whole checkpoint of the parts it has."""
    shapes = weights.shapes()
    lines = [
        _line("file", str(weights.path)),
        _line("format", f"{weights.format}, {weights.layout} names, {_size(weights)}"),
        _line("tensors", _formats(weights)),
        _line("parameters", f"{_count(shapes, list(shapes)):,}"),
    ]
    try:
        architecture = weights.architecture()
    except SuiteError:
        return [*lines, _line("architecture", f"none that is known here: this is {describe(shapes)}")], False
    lines.append(_line("architecture", _title(architecture)))
    lines.append("")
    for part, prefixes in PARTS.items():
        names = [name for name in shapes if name.startswith(prefixes)]
        if not names:
            lines.append(_line(part, "not in this file"))
            continue
        formats = " and ".join(sorted({FORMAT_NAMES.get(weights.dtype(name), weights.dtype(name)) for name in names}))
        lines.append(_line(part, f"{_count(shapes, names):,} parameters in {len(names):,} tensors, {formats}"))
        lines += [INDENT + line for line in _details(architecture, part, shapes)]
    lines.append("")
    expected = expected_shapes(architecture)
    found = compare(shapes, expected)
    misshapen = [f"{name} {shapes[name]} instead of {expected[name]}" for name in found.misshapen]
    for title, names in (("missing", found.missing), ("misshapen", misshapen), ("not used", found.unexpected)):
        lines.append(_line(title, f"{len(names)}: {named(names)}" if names else "nothing"))
    return lines, not found.missing and not found.misshapen


def _line(title: str, text: str) -> str:
    return f"{title:<{len(INDENT)}}{text}"


def _count(shapes: Shapes, names: list[str]) -> int:
    return sum(math.prod(shapes[name]) for name in names)


def _size(weights: WeightFile) -> str:
    size = sum(tensor_bytes(weights.shape(name), weights.dtype(name)) for name in weights.names(buffers=True))
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if size >= unit), (1e3, "kB"))
    return f"{size / unit:.2f} {name}"


def _formats(weights: WeightFile) -> str:
    """How many tensors there are of each number format."""
    counts = Counter(weights.dtype(name) for name in weights.names(buffers=True))
    return ", ".join(f"{number:,} {FORMAT_NAMES.get(tag, tag.lower())}" for tag, number in counts.most_common())


def _title(architecture: ModelArchitecture) -> str:
    if architecture.unet is None and not architecture.text_encoders:
        return "an autoencoder tells no more than its own: SDXL, SD 1.x and 2.x have the same"
    known = KNOWN_UNETS.get(architecture.name)
    unet = architecture.unet and replace(architecture.unet, guidance_dim=None)
    size = "" if unet in (None, known) else ", a size of its own"
    return f"{architecture.name}: {TITLES[architecture.name]}{size}"


def _details(architecture: ModelArchitecture, part: str, shapes: Shapes) -> list[str]:
    """What the shapes of one part say."""
    if part == "UNet" and (unet := architecture.unet):
        vector = f", vector {unet.vector_dim} ({architecture.size_numbers} size numbers)" if unet.vector_dim else ""
        inputs = "" if unet.in_channels == 4 else f" from {unet.in_channels} input channels"
        middle = "without attention" if unet.mid_depth is None else unet.mid_depth
        guidance = f", told the guidance scale in {unet.guidance_dim} numbers" if unet.guidance_dim else ""
        return [
            f"channels {_joined(unet.channels)}{inputs}, context {unet.context_dim}{vector}{guidance}",
            f"transformer blocks: down {_nested(unet.down_depths)}, middle {middle}, up {_nested(unet.up_depths)}",
        ]
    if part == "autoencoder" and (autoencoder := architecture.autoencoder):
        factor = f"{autoencoder.downsampling}x downsampling"
        if architecture.unet or architecture.text_encoders:  # which tell the family, and with it the factor
            factor += f", scale factor {autoencoder.scale_factor}"
        return [f"channels {_joined(autoencoder.channels)}, {autoencoder.latent_channels} latent channels, {factor}"]
    if part == "text encoders":
        told = []
        for encoder, prefix in zip(architecture.text_encoders, architecture.text_prefixes):
            count = _count(shapes, [name for name in shapes if name.startswith(prefix)])
            told.append(f"{_text_encoder(encoder)}: {count:,} parameters")
        return told
    return []


def _text_encoder(encoder: TextEncoderArchitecture) -> str:
    kind = {768: "CLIP-L", 1024: "OpenCLIP ViT-H", 1280: "OpenCLIP ViT-bigG"}.get(encoder.width, encoder.layout)
    pooled = f", pooled to {encoder.projection_dim}" if encoder.pooled else ""
    return f"{kind}, {encoder.layers} layers of width {encoder.width}, {encoder.vocab_size:,} tokens{pooled}"


def _joined(numbers: tuple[int, ...]) -> str:
    return "-".join(map(str, numbers))


def _nested(levels: tuple[tuple[int, ...], ...]) -> str:
    return " | ".join(" ".join(map(str, level)) for level in levels)


def check_values(weights: WeightFile) -> list[str]:
    """Read every tensor; a line for each that has NaN or infinite values, with their number."""
    names = weights.names()
    total = sum(tensor_bytes(weights.shape(name), weights.dtype(name)) for name in names)
    broken = []
    with progress("reading", total) as bar:
        for name in names:
            tag, bad = weights.dtype(name), 0
            for chunk in weights.sources[name].stream():
                if not is_finite(chunk, tag):
                    bad += int(np.count_nonzero(~np.isfinite(to_float32(chunk, tag))))
                bar.update(chunk.nbytes)
            if bad:
                size = math.prod(weights.shape(name))
                broken.append(_line("not finite", f"{name}: {bad:,} of {size:,} values"))
    return broken
