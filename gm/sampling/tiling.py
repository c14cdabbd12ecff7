"""A network over a large picture in overlapping tiles of one shape, blended: memory is that of one tile.

The tiles, seams and blending are those of diffusers' ``AutoencoderKL.tiled_decode``. What differs are the tiles at the
right and lower edge: diffusers cuts them at the edge, so that they have shapes of their own; here they begin earlier,
and what they have in excess is thrown away. So one graph serves all tiles, and edges see as much picture as the rest.
"""

from collections.abc import Callable

import numpy as np

OVERLAP = 4  # a quarter of a tile is shared with the next


def tiled(network: Callable[[np.ndarray], np.ndarray], x: np.ndarray, tile: int) -> np.ndarray:
    """What ``network`` makes of ``x`` (B, C, H, W), computed on parts of at most ``tile`` x ``tile``.

    ``network`` maps (B, C, h, w) to (B, C', s h, s w), with any s for which whole tiles and their overlap, a quarter of
    a tile, stay whole numbers. It sees one shape only: (tile, tile), or less where the picture is smaller.
    """
    sizes = [min(tile, length) for length in x.shape[2:]]
    rows, columns = (_starts(length, tile) for length in x.shape[2:])
    above: list[np.ndarray] = []
    bands = []
    for row, (top, kept_top) in enumerate(rows):
        band: list[np.ndarray] = []
        for column, (left, kept_left) in enumerate(columns):
            out = network(np.ascontiguousarray(x[:, :, top : top + sizes[0], left : left + sizes[1]]))
            scale = out.shape[2] / sizes[0]
            overlap = round(scale * tile / OVERLAP)
            stride = round(scale * tile) - overlap
            out = np.array(out[:, :, round(scale * (kept_top - top)) :, round(scale * (kept_left - left)) :])
            if row:
                _blend(above[column], out, overlap, axis=2)
            if column:
                _blend(band[-1], out, overlap, axis=3)
            band.append(out)
        above = band
        whole = np.concatenate([out[:, :, :, :stride] for out in band[:-1]] + band[-1:], axis=3)
        bands.append(whole if row == len(rows) - 1 else whole[:, :, :stride])
    return np.concatenate(bands, axis=2)


def _starts(length: int, tile: int) -> list[tuple[int, int]]:
    """(where a tile begins, from where on it counts) until the tiles reach the end."""
    stride = tile - tile // OVERLAP
    count = 1 + max(0, -(-(length - tile) // stride))
    return [(max(0, min(index * stride, length - tile)), index * stride) for index in range(count)]


def _blend(before: np.ndarray, after: np.ndarray, overlap: int, axis: int) -> None:
    """Let the first ``overlap`` of ``after`` begin as the last of ``before`` and end as itself, linearly."""
    before, after = np.moveaxis(before, axis, -1), np.moveaxis(after, axis, -1)
    weight = np.arange(overlap, dtype=after.dtype) / overlap
    after[..., :overlap] = before[..., -overlap:] * (1 - weight) + after[..., :overlap] * weight
