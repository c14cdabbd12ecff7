"""Picture sizes to train at: one square, or a set of sizes of about equal area to which pictures go by aspect ratio."""

import math
from bisect import bisect
from functools import cache

Size = tuple[int, int]  # height, width in pixels

# Podell et al. 2023 (arXiv 2307.01952), appendix I: (height, width) of SDXL's own training.
SDXL_SIZES: tuple[Size, ...] = (
    ((512, 2048), (512, 1984), (512, 1920), (512, 1856), (576, 1792), (576, 1728), (576, 1664), (640, 1600))
    + ((640, 1536), (704, 1472), (704, 1408), (704, 1344), (768, 1344), (768, 1280), (832, 1216), (832, 1152))
    + ((896, 1152), (896, 1088), (960, 1088), (960, 1024), (1024, 1024), (1024, 960), (1088, 960), (1088, 896))
    + ((1152, 896), (1152, 832), (1216, 832), (1280, 768), (1344, 768), (1344, 704), (1408, 704), (1472, 704))
    + ((1536, 640), (1600, 640), (1664, 576), (1728, 576), (1792, 576), (1856, 512), (1920, 512), (1984, 512))
    + ((2048, 512),)
)


def alignment(resolution: int) -> int:
    """Sides are multiples of 64 px as in SDXL's training; below 256 px of 32, the least that the UNet halves evenly."""
    return 64 if resolution >= 256 else 32


def sizes(resolution: int, buckets: bool) -> tuple[Size, ...]:
    """The sizes to train at, in a fixed order.

    Without buckets the one square. With buckets, at 1024 px SDXL's own list; else every aligned short side from half
    the resolution up, with the longest aligned long side that keeps the area within ``resolution ** 2``, both ways.
    """
    if not buckets:
        return ((resolution, resolution),)
    if resolution == 1024:
        return SDXL_SIZES
    step = alignment(resolution)
    found = set()
    for short in range(math.ceil(resolution / 2 / step) * step, resolution + 1, step):
        long = resolution * resolution // short // step * step
        if long >= short:
            found |= {(short, long), (long, short)}
    return tuple(sorted(found))


def nearest(original: Size, choices: tuple[Size, ...]) -> Size:
    """The size whose aspect ratio is nearest on a logarithmic scale; of equals the larger, then the first."""
    ratio = math.log(original[0] / original[1])
    ratios, best = _by_ratio(choices)
    place = bisect(ratios, ratio)
    return min(best[max(place - 1, 0) : place + 1], key=lambda ranked: (round(abs(ranked[0] - ratio), 9), ranked[1]))[2]


@cache
def _by_ratio(choices: tuple[Size, ...]) -> tuple[list[float], list[tuple[float, tuple[int, int], Size]]]:
    """The different log ratios in order, and for each the best size: (log ratio, rank, size)."""
    ranked = ((math.log(h / w), (-h * w, place), (h, w)) for place, (h, w) in enumerate(choices))
    best = {}
    for ratio, rank, size in sorted(ranked, reverse=True):  # of equal ratios the best comes last
        best[ratio] = (ratio, rank, size)
    return sorted(best), [best[ratio] for ratio in sorted(best)]
