"""What turns pictures and token ids into what the UNet is trained on: the frozen networks before it."""

import hashlib
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gm.config import Config
from gm.data.notes import FileNotes
from gm.errors import SuiteError
from gm.models.architecture import AUTOENCODER, COND_STAGE, EMBEDDERS, UNTRAINED, ModelArchitecture
from gm.weights.dtypes import to_float32
from gm.weights.files import open_weights
from gm.weights.keys import OPTIONAL_ENDINGS

# Half precision overflows in SDXL's autoencoder, and here every value is computed once and used in every epoch.
PRECISION = "fp32"

# MindSpore is imported where the networks are built: reading a full cache needs only the hashes.


class Encoders(Protocol):
    """The frozen networks. Each hash changes with the weights it stands for and the precision they compute in."""

    picture_hash: str
    text_hash: str

    def encode_pictures(self, pictures: np.ndarray) -> np.ndarray:
        """Pictures (B, 3, H, W) in [-1, 1] -> posterior moments, mean and log variance, (B, 8, H/8, W/8) float32."""

    def encode_text(self, *ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (B, 77) int32 for each text encoder -> context (B, 77, C), pooled (B, P or 0) float32."""

    def check_ids(self, *ids: np.ndarray) -> None:
        """Raises SuiteError if the text encoders do not know all of these token ids."""


class NetworkEncoders:
    """The autoencoder and the text towers of the weights file, built and compiled when they are first used.

    Without a file they are untrained ones of ``model.architecture``, drawn from the run's seed.
    """

    def __init__(self, config: Config):
        self._weight = Path(config.model.weight) if config.model.weight else None
        self._untrained, self._seed = UNTRAINED[config.model.architecture], config.train.seed
        self._notes = FileNotes(Path(config.cache.path) / "weights.json")

    @cached_property
    def architecture(self) -> ModelArchitecture:
        """Of the weights file, or of what is built without one."""
        if self._weight is None:
            return self._untrained
        if not self._weight.exists():
            raise SuiteError(f"no weights at {self._weight}: --weight names a .ckpt, .safetensors or diffusers folder")
        with open_weights(self._weight) as weights:
            return weights.architecture()

    @cached_property
    def picture_hash(self) -> str:
        """Of the encoder half of the autoencoder: its decoder has no part in latents, and training scales them."""
        built = self.architecture.autoencoder and replace(self.architecture.autoencoder, scale_factor=1.0)
        return self._hash("autoencoder", (AUTOENCODER + "encoder.", AUTOENCODER + "quant_conv."), built)

    @cached_property
    def text_hash(self) -> str:
        """Of weights and of what they do not say, such as which layer's states are taken."""
        return self._hash("text encoders", (EMBEDDERS, COND_STAGE), self.architecture.text_encoders)

    def encode_pictures(self, pictures: np.ndarray) -> np.ndarray:
        from mindspore import Tensor

        return self._picture_network(Tensor(pictures)).asnumpy()

    def encode_text(self, *ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.conditioner.encode(ids)

    def check_ids(self, *ids: np.ndarray) -> None:
        self.conditioner.check(ids)

    @cached_property
    def autoencoder(self) -> Any:
        """``gm.models.autoencoder.Autoencoder``.

        Raises:
            SuiteError: the weights file has none.
        """
        from gm.models.build import build_autoencoder

        if self.architecture.autoencoder is None:
            raise _lacks(self._weight, "autoencoder")
        autoencoder = build_autoencoder(self.architecture.autoencoder, self._seed if self._weight is None else None)
        self._fill(autoencoder, AUTOENCODER)
        return autoencoder

    @cached_property
    def conditioner(self) -> Any:
        """``gm.models.conditioner.TextConditioner``.

        Raises:
            SuiteError: the weights file has no text encoders.
        """
        from gm.models.build import build_conditioner

        if not self.architecture.text_encoders:
            raise _lacks(self._weight, "text encoders")
        conditioner = build_conditioner(self.architecture, self._seed if self._weight is None else None)
        self._fill(conditioner)
        return conditioner

    @cached_property
    def _picture_network(self) -> Any:
        from gm.models.autoencoder import AutoencoderEncoder

        return AutoencoderEncoder(self.autoencoder).set_train(False)

    def _fill(self, network: Any, prefix: str = "") -> None:
        from gm.weights.load import load_into

        if self._weight is not None:
            with open_weights(self._weight) as weights:
                load_into(network, weights, prefix=prefix)

    def _hash(self, what: str, prefixes: tuple[str, ...], built: Any) -> str:
        """``built``: the networks as they are built from the weights under ``prefixes``."""
        if self._weight is None:
            return _hash_text(f"{PRECISION} untrained {what} {self._untrained} {self._seed}")
        return _hash_text(f"{PRECISION} {built} {self._weights_hash(what, prefixes)}")

    def _weights_hash(self, what: str, prefixes: tuple[str, ...]) -> str:
        def compute(path: Path) -> str:
            return weights_hash(path, what, prefixes)

        if self._weight.is_dir():  # a folder's times do not tell of changes inside the files
            return compute(self._weight)
        result = self._notes.remember(self._weight.absolute(), what, compute)
        self._notes.save()
        return result


def weights_hash(path: Path, what: str, prefixes: tuple[str, ...]) -> str:
    """Of names, shapes and float32 values of the tensors under ``prefixes``, whatever formats they are kept in.

    Raises:
        SuiteError: there are none; ``what`` is missing.
    """
    digest = hashlib.blake2b(digest_size=16)
    with open_weights(path) as weights:
        names = sorted(
            name for name in weights.names() if name.startswith(prefixes) and not name.endswith(OPTIONAL_ENDINGS)
        )
        if not names:
            raise _lacks(path, what)
        for name in names:
            digest.update(f"{name} {tuple(weights.shape(name))}\n".encode())
            for chunk in weights.stream(name):
                digest.update(np.ascontiguousarray(to_float32(chunk, weights.dtype(name))))
    return digest.hexdigest()


def _hash_text(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _lacks(path: Path, what: str) -> SuiteError:
    return SuiteError(f"{path} has no {what}: name the file it was made from, which has all parts, with --weight")
