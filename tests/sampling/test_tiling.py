"""Tiles: one shape whatever the picture, seams that blend linearly, and diffusers' pictures from the same weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gm.sampling.tiling import tiled

TILE = 8  # latents


def enlarged(x: np.ndarray) -> np.ndarray:
    """A decoder without surroundings: every latent becomes 8 x 8 pixels of its value."""
    return np.repeat(np.repeat(x, 8, axis=2), 8, axis=3)


def thinned(x: np.ndarray) -> np.ndarray:
    """An encoder without surroundings."""
    return x[:, :, ::8, ::8]


@given(height=st.integers(1, 40), width=st.integers(1, 40), tile=st.sampled_from([4, 8, 12, 16]))
def test_what_needs_no_surroundings_is_the_same_and_every_tile_has_one_shape(height, width, tile):
    latents = np.random.default_rng(0).normal(size=(2, 3, height, width)).astype(np.float32)
    pixels = enlarged(latents)
    for network, given_array, right, side in ((enlarged, latents, pixels, tile), (thinned, pixels, latents, 8 * tile)):
        shapes = set()

        def watched(x, network=network, shapes=shapes):
            shapes.add(x.shape)
            return network(x)

        np.testing.assert_allclose(tiled(watched, given_array, side), right, rtol=1e-6)
        assert shapes == {(2, 3, *(min(side, length) for length in given_array.shape[2:]))}


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize("length", [14, 11])
def test_a_seam_goes_linearly_from_one_tile_to_the_next(axis, length):
    """Two tiles of which the first is all 0 and the second all 1: the seam is where the second nominally begins."""
    shape = [1, 1, TILE, TILE]
    shape[axis] = length
    calls = iter((0.0, 1.0))
    out = tiled(lambda x: np.full_like(enlarged(x), next(calls)), np.zeros(shape, np.float32), TILE)
    line = out.reshape(8 * length, -1) if axis == 2 else out.reshape(-1, 8 * length).T
    expected = np.concatenate([np.zeros(48), np.arange(16) / 16, np.ones(8 * length - 64)])
    np.testing.assert_allclose(line, np.repeat(expected[:, None], 64, axis=1), atol=1e-6)


@pytest.fixture(scope="module")
def theirs(tiny_cells):
    """diffusers' autoencoder with the same weights and the same tiles."""
    pytest.importorskip("diffusers")
    from tests.sampling.reference import autoencoder

    vae = autoencoder(tiny_cells[1], sample_size=8 * TILE)
    vae.enable_tiling()
    assert (vae.tile_latent_min_size, vae.tile_sample_min_size, vae.tile_overlap_factor) == (TILE, 8 * TILE, 0.25)
    return vae


# Three tiles by two, all whole: behind the last of them, where it overlaps with nothing of ours, diffusers adds tiles
# as narrow as the overlap.
SIZE, OVERLAP = (20, 14), 2


def assert_close(ours, right):
    assert ours.shape == right.shape
    assert np.abs(ours - right).max() <= 1e-4 * np.abs(right).max()


@pytest.mark.slow
@pytest.mark.reference
def test_tiles_are_those_of_diffusers_up_to_its_narrow_last_ones(tiny_networks, theirs):
    import torch

    rng = np.random.default_rng(1)
    latents = rng.normal(size=(1, 4, *SIZE)).astype(np.float32)
    pictures = rng.uniform(-1, 1, (1, 3, 8 * SIZE[0], 8 * SIZE[1])).astype(np.float32)
    with torch.no_grad():
        decoded = theirs.decode(torch.from_numpy(latents)).sample.numpy()
        moments = theirs.encode(torch.from_numpy(pictures)).latent_dist.parameters.numpy()
    ours = tiled(tiny_networks.decode, latents * tiny_networks.scale_factor, TILE)
    whole = [8 * (length - OVERLAP) for length in SIZE]
    assert ours.shape == decoded.shape
    assert_close(ours[:, :, : whole[0], : whole[1]], decoded[:, :, : whole[0], : whole[1]])
    whole = [length - OVERLAP for length in SIZE]
    ours = tiled(tiny_networks.encode, pictures, 8 * TILE)
    assert ours.shape == moments.shape
    assert_close(ours[:, :, : whole[0], : whole[1]], moments[:, :, : whole[0], : whole[1]])


@pytest.mark.slow
@pytest.mark.reference
def test_one_graph_serves_every_tile_of_every_picture(tiny_networks):
    from gm import compilation

    rng = np.random.default_rng(2)
    tiled(tiny_networks.decode, rng.normal(size=(1, 4, *SIZE)), TILE)
    before = len(compilation.done())
    for size in ((9, 8), (8, 23), (17, 19)):
        picture = tiled(tiny_networks.decode, rng.normal(size=(1, 4, *size)), TILE)
        assert picture.shape == (1, 3, 8 * size[0], 8 * size[1])
    assert len(compilation.done()) == before
