"""Which size a sample is trained at and how it is framed in an epoch: one answer for the cache and for training."""

from dataclasses import dataclass
from functools import lru_cache

from gm.config import Config
from gm.data import buckets, transforms
from gm.data.buckets import Size
from gm.data.randomness import generator
from gm.data.sample import Sample


@dataclass(frozen=True)
class Geometry:
    """The framing rules of a run. ``seed`` matters only where something is random."""

    sizes: tuple[Size, ...]
    crop: str
    random_flip: bool
    seed: int

    @classmethod
    def of(cls, config: Config) -> "Geometry":
        data = config.data
        sizes = buckets.sizes(data.resolution, data.buckets)
        return cls(sizes, data.crop, data.random_flip, config.train.seed)

    @property
    def varies(self) -> bool:
        """Whether a picture is framed anew in every epoch."""
        return self.crop == "random" or self.random_flip

    def bucket(self, sample: Sample) -> Size:
        return _nearest(sample.size, self.sizes)

    def framing(self, sample: Sample, visit: int) -> transforms.Framing:
        """How a sample is framed when it came ``visit`` times before."""
        rng = generator(self.seed, visit, sample.id, "framing") if self.varies else None
        return transforms.frame(sample.size, self.bucket(sample), self.crop, self.random_flip, rng)


@lru_cache(maxsize=4096)  # many pictures have the same size, and start-up asks for all of them
def _nearest(original: Size, choices: tuple[Size, ...]) -> Size:
    return buckets.nearest(original, choices)
