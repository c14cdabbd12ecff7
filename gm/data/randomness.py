"""Randomness that belongs to the sample: a stream for every (seed, epoch, sample id, purpose), the same on any rank."""

import hashlib

import numpy as np


def generator(seed: int, epoch: int, sample_id: str, purpose: str) -> np.random.Generator:
    """A counter-based generator (Philox4x64: Salmon et al., SC 2011) keyed by a hash of the four.

    Neither the order in which samples are visited, nor ranks, workers or restarts change what a sample draws.
    """
    digest = hashlib.blake2b(digest_size=16, person=b"gm.randomness")
    for part in (str(int(seed)), str(int(epoch)), sample_id, purpose):
        encoded = part.encode("utf-8", "surrogateescape")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest.digest(), "<u8")))
