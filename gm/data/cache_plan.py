"""Which entries of the cache belong to which pictures and captions."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gm.config import Config
from gm.data import transforms
from gm.data.cache_store import ShardStore
from gm.data.claims import Claims
from gm.data.encoders import Encoders, NetworkEncoders
from gm.data.geometry import Geometry
from gm.data.notes import FileNotes
from gm.data.prefetch import for_each, uncollected
from gm.data.sample import Sample
from gm.data.tokens import Tokenizers
from gm.data.transforms import Framing
from gm.errors import SuiteError

log = logging.getLogger(__name__)

EMPTY = ""  # the caption of a sample whose caption is dropped
FORMAT = 2  # counted up when entries change their meaning or shards their form


@dataclass(frozen=True)
class Keys:
    """Names of entries: hashes of everything an entry depends on."""

    picture_hash: str
    text_hash: str
    dtype: str

    def latents(self, content: str, framing: Framing) -> str:
        """Of the picture with the bytes' hash ``content``, framed like that."""
        how = (transforms.FILTER, *framing.resized, framing.top, framing.left, *framing.target, framing.flip)
        return _hash("latents", content, how, self.picture_hash, self.dtype)

    def text(self, caption: str) -> str:
        return _hash("text", caption, self.text_hash, self.dtype)


@dataclass
class Plan:
    """Samples and stores, and which entry belongs to what: what both building and reading start from."""

    samples: list[Sample]
    geometry: Geometry
    encoders: Encoders
    tokenizers: Tokenizers
    keys: Keys
    latents: ShardStore
    texts: ShardStore
    contents: dict[str, str]  # sample id -> hash of the picture file
    variants: int

    @classmethod
    @uncollected()
    def gather(
        cls, config: Config, samples: list[Sample], encoders: Encoders | None, tokenizers: Tokenizers | None
    ) -> "Plan":
        path = Path(config.cache.path)
        encoders = encoders or NetworkEncoders(config)
        tokenizers = tokenizers or Tokenizers.of(config.model)
        geometry = Geometry.of(config)
        keys = Keys(encoders.picture_hash, _hash(encoders.text_hash, tokenizers.hash), config.cache.dtype)
        contents = _content_hashes(samples, path / "pictures.json")
        return cls(
            samples,
            geometry,
            encoders,
            tokenizers,
            keys,
            ShardStore(path / "latents"),
            ShardStore(path / "texts"),
            contents,
            variants=config.cache.variants if geometry.varies else 1,
        )

    def latent_key(self, sample: Sample, variant: int) -> tuple[str, Framing]:
        framing = self.geometry.framing(sample, variant)
        return self.keys.latents(self.contents[sample.id], framing), framing

    def needed_latents(self) -> dict[str, tuple[Sample, Framing]]:
        needed: dict[str, tuple[Sample, Framing]] = {}
        for sample in self.samples:
            for variant in range(self.variants):
                key, framing = self.latent_key(sample, variant)
                needed.setdefault(key, (sample, framing))
        return needed

    def refused_samples(self) -> dict[str, str]:
        """Ids of samples whose picture is known to be broken, with the reason."""
        refused = self.latents.refused
        if not refused:
            return {}
        keys = (
            (sample.id, self.latent_key(sample, variant)[0])
            for sample in self.samples
            for variant in range(self.variants)
        )
        return {id: refused[key] for id, key in keys if key in refused}

    def needed_texts(self) -> dict[str, str]:
        captions = {caption for sample in self.samples for caption in sample.captions} | {EMPTY}
        return {self.keys.text(caption): caption for caption in captions}


def _content_hashes(samples: Sequence[Sample], path: Path) -> dict[str, str]:
    """Hashes of the picture files by sample id; ``path`` keeps them. Of several processes one reads the pictures."""
    with Claims(path.parent) as claims:
        try:
            claims.wait(path.name)
        except OSError:
            log.debug("the cache cannot be written to: hashes of pictures are not kept")
        notes = FileNotes(path)

        def content(sample: Sample) -> str:
            try:
                return sample.picture.hash(notes)
            except OSError as error:
                raise SuiteError(f"picture {sample.id} cannot be read any more ({error.strerror}): run again") from None

        contents = for_each(content, samples, workers=4)
        notes.save()
    return {sample.id: value for sample, value in zip(samples, contents)}


def _hash(*parts: str | int | tuple) -> str:
    # ASCII literals of Python are as unambiguous as JSON, and made in half its time.
    return hashlib.blake2b(ascii((FORMAT, *parts)).encode(), digest_size=16).hexdigest()
