"""A weight file in words: what ``inspect_weight.py`` prints."""

import math
from collections import Counter

import numpy as np

from gm.errors import SuiteError
from gm.models.architecture import COND_STAGE, EMBEDDERS, ModelArchitecture, TextEncoderArchitecture
from gm.weights.convert import progress, tensor_bytes
from gm.weights.detect import describe
from gm.weights.dtypes import is_finite, to_float32
from gm.weights.files import WeightFile, named, same_shape
from gm.weights.keys import AUTOENCODER, OPTIONAL_ENDINGS, UNET, expected_shapes

PARTS = {"unet": (UNET,), "autoencoder": (AUTOENCODER,), "text towers": (EMBEDDERS, COND_STAGE)}
FORMAT_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def report(weights: WeightFile) -> tuple[list[str], bool]:
    """Lines of text, and whether the file is a whole checkpoint of the parts it has."""
    shapes = weights.shapes()
    lines = [
        f"file         {weights.path} ({weights.format}, {weights.layout} names)",
        f"tensors      {_totals(weights)}",
    ]
    try:
        architecture = weights.architecture()
    except SuiteError:
        return [*lines, f"architecture none that is known here: this is {describe(shapes)}"], False
    lines.append(f"architecture {architecture.name}")
    for part, prefixes in PARTS.items():
        names = [name for name in shapes if name.startswith(prefixes)]
        count = sum(math.prod(shapes[name]) for name in names)
        formats = " and ".join(sorted({FORMAT_NAMES.get(weights.dtype(name), weights.dtype(name)) for name in names}))
        lines.append(f"{part:<12} {f'{count:,} parameters, {formats}' if names else 'not in this file'}")
        lines += [f"             {line}" for line in _details(architecture, part)]
    expected = expected_shapes(architecture)
    missing = [name for name in expected if name not in shapes and not name.endswith(OPTIONAL_ENDINGS)]
    misshapen = [name for name in expected if name in shapes and not same_shape(shapes[name], expected[name])]
    other = [name for name in shapes if name not in expected]
    for title, names in (("missing", missing), ("misshapen", misshapen), ("not used", other)):
        lines.append(f"{title:<12} {f'{len(names)}: {named(names)}' if names else 'nothing'}")
    return lines, not missing and not misshapen


def _totals(weights: WeightFile) -> str:
    count, size = Counter(), Counter()
    for name in weights.names(buffers=True):
        tag = weights.dtype(name)
        count[tag] += 1
        size[tag] += tensor_bytes(weights.shape(name), tag)
    kinds = ", ".join(f"{number} {FORMAT_NAMES.get(tag, tag)}" for tag, number in count.most_common())
    return f"{sum(count.values())} ({kinds}), {sum(size.values()) / 2**20:,.1f} MiB"


def _details(architecture: ModelArchitecture, part: str) -> list[str]:
    """What the shapes of one part say."""
    if part == "unet" and (unet := architecture.unet):
        vector = f", vector {unet.vector_dim} ({architecture.size_numbers} size numbers)" if unet.vector_dim else ""
        middle = "without attention" if unet.mid_depth is None else unet.mid_depth
        return [
            f"channels {_joined(unet.channels)}, context {unet.context_dim}{vector}",
            f"transformer blocks: down {_nested(unet.down_depths)}, middle {middle}, up {_nested(unet.up_depths)}",
        ]
    if part == "autoencoder" and (autoencoder := architecture.autoencoder):
        factor = f"{autoencoder.downsampling}x downsampling, scale factor {autoencoder.scale_factor}"
        return [f"channels {_joined(autoencoder.channels)}, {autoencoder.latent_channels} latent channels, {factor}"]
    if part == "text towers":
        return [_text_encoder(encoder) for encoder in architecture.text_encoders]
    return []


def _text_encoder(encoder: TextEncoderArchitecture) -> str:
    pooled = f", pooled to {encoder.projection_dim}" if encoder.projection_dim else ""
    return f"{encoder.layout}: {encoder.layers} layers of width {encoder.width}, {encoder.vocab_size} tokens{pooled}"


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
                broken.append(f"not finite   {name}: {bad:,} of {size:,} values")
    return broken
