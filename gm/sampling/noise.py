"""Randomness of pictures: each has a generator of its own, so no picture depends on the batch it is drawn in."""

from collections.abc import Sequence

import numpy as np


class PictureNoise:
    """Unit noise for a batch of pictures, each drawn from the Philox stream (Salmon et al., SC 2011) of its seed.

    Calling it gives the next (B, *shape) float32 array; the first is a run's initial noise.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...]):
        self.generators = [np.random.Generator(np.random.Philox(seed)) for seed in seeds]
        self.shape = shape

    def __call__(self) -> np.ndarray:
        return np.stack([generator.standard_normal(self.shape, np.float32) for generator in self.generators])
