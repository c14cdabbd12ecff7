"""Classifier-free guidance: two predictions, with and without the prompt, made into one."""

import math

import numpy as np


def classifier_free(unconditional: np.ndarray, conditional: np.ndarray, scale: float) -> np.ndarray:
    """u + scale (c - u): Ho and Salimans 2022 (arXiv 2207.12598), eq. 6 with scale = 1 + w. 1 is no guidance."""
    return unconditional + float(scale) * (conditional - unconditional)


def rescale(guided: np.ndarray, conditional: np.ndarray, phi: float) -> np.ndarray:
    """Bring each sample's spread (B, ...) back towards that of the conditional prediction.

    Lin et al. 2023 (arXiv 2305.08891), eq. 15 and 16: phi g std(c) / std(g) + (1 - phi) g, the standard deviation over
    all but the batch axis. ``phi`` 0 changes nothing; the paper uses 0.7 with zero terminal SNR.
    """
    if phi == 0:
        return guided
    axes = tuple(range(1, guided.ndim))
    spread = guided.std(axis=axes, keepdims=True, dtype=np.float64)
    wanted = conditional.std(axis=axes, keepdims=True, dtype=np.float64)
    # a constant prediction has no spread to bring back
    factor = np.divide(wanted, spread, out=np.ones_like(spread), where=spread > 0)
    return (guided * (phi * factor + (1.0 - phi))).astype(guided.dtype)


def embedded(scale: float, width: int) -> np.ndarray:
    """What a model distilled to draw guided pictures by itself (Meng et al. 2022, arXiv 2210.03142) is told of the
    guidance scale: sines, then cosines, of 1000 (scale - 1) at ``width``/2 geometric frequencies -> (width,) float32.

    As in the LCM of Luo et al. 2023 (arXiv 2310.04378) and diffusers' ``get_guidance_scale_embedding``; an odd width
    ends in 0.
    """
    half = width // 2
    step = np.float32(np.float32(math.log(10000.0)) / np.float32(half - 1))
    angles = np.float32((scale - 1.0) * 1000.0) * np.exp(-step * np.arange(half, dtype=np.float32))
    return np.concatenate([np.sin(angles), np.cos(angles), np.zeros(width % 2)]).astype(np.float32)
