"""Small folders of pictures and encoders that are arithmetic, so that these tests need no network."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gm.config import Config


class FakeEncoders:
    """Encoders whose every output depends on all of its input, and that count what they are asked for."""

    def __init__(self, picture_hash: str = "vae", text_hash: str = "clip"):
        self.picture_hash, self.text_hash = picture_hash, text_hash
        self.pictures = self.texts = 0

    def encode_pictures(self, pictures: np.ndarray) -> np.ndarray:
        self.pictures += len(pictures)
        batch, _, height, width = pictures.shape
        means = pictures.reshape(batch, 3, height // 8, 8, width // 8, 8).mean((3, 5))
        spread = pictures.reshape(batch, 3, height // 8, 8, width // 8, 8).std((3, 5))
        return np.concatenate([means, spread, means[:, :2] - spread[:, :2]], axis=1).astype(np.float32)

    def check_ids(self, *ids: np.ndarray) -> None:
        """All are known."""

    def encode_text(self, ids_1: np.ndarray, ids_2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.texts += len(ids_1)
        context = np.stack([np.sin(ids_1), np.cos(ids_2), np.sin(ids_1 * 0.1 + ids_2)], axis=-1)
        return context.astype(np.float32), context.mean(1).astype(np.float32)


class FakeTokenizers:
    """Ids from hashes of the words."""

    hash = "words"

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids = np.zeros((len(texts), 77), np.int32)
        for row, text in enumerate(texts):
            words = [hashlib.blake2b(word.encode(), digest_size=1).digest()[0] for word in text.split()]
            ids[row, : len(words)] = words
        return ids, ids + 1


@pytest.fixture
def encoders() -> FakeEncoders:
    return FakeEncoders()


@pytest.fixture
def make_encoders():
    return FakeEncoders


@pytest.fixture
def tokenizers() -> FakeTokenizers:
    return FakeTokenizers()


@pytest.fixture
def draw_picture():
    """Write a picture whose pixels follow from ``seed``."""

    def draw(path: Path, seed: int = 0, size: tuple[int, int] = (64, 64), **options) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(path, **options)
        return path

    return draw


@pytest.fixture
def files():
    """Everything in a cache that must not depend on how it came about, hidden files included."""

    def contents(folder) -> dict[str, bytes]:
        paths = [path for kind in ("latents", "texts") for path in (Path(folder) / kind).glob("*")]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}

    return contents


@pytest.fixture
def pictures(tmp_path, draw_picture) -> Path:
    """A folder of ten pictures with captions; two captions are the same, one picture has two."""
    root = tmp_path / "pictures"
    for index in range(10):
        draw_picture(root / f"{index}.png", seed=index)
        (root / f"{index}.txt").write_text(f"caption {index % 9}\n")
    (root / "3.txt").write_text("caption 3\nanother caption 3\n")
    return root


@pytest.fixture
def config(pictures, tmp_path) -> Config:
    """Cached training on ``pictures``, in float32."""
    config = Config()
    config.data.path, config.data.resolution, config.data.per_batch_size = str(pictures), 32, 4
    config.cache.path, config.cache.dtype = str(tmp_path / "cache"), "fp32"
    config.cache.latent = config.cache.text_embedding = True
    return config
