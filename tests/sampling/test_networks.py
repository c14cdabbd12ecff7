import mindspore as ms
import numpy as np
import pytest

from gm.errors import SuiteError
from gm.models.architecture import TINY_SDXL
from gm.models.build import build_unet
from gm.models.conditioner import conditioning_vector
from gm.sampling.networks import load_networks
from gm.weights.load import write_parameters

RNG = np.random.default_rng(0)
LATENTS = RNG.standard_normal((2, 4, 9, 13)).astype(np.float32)  # as in test_parity, which then shares its graphs
CONTEXT = RNG.standard_normal((4, 77, 128)).astype(np.float32)
POOLED = RNG.standard_normal((4, 64)).astype(np.float32)
TIME_IDS = np.array([[64, 64, 0, 0, 64, 64], [90, 70, 3, 4, 64, 64], [0] * 6, [64] * 6], np.float32)


def test_both_guided_predictions_come_from_one_call(tiny_networks):
    both = tiny_networks.denoiser(CONTEXT, POOLED, TIME_IDS, copies=2)(LATENTS, 500.0)
    assert both.shape == (4, 4, 9, 13)
    for half in (slice(0, 2), slice(2, 4)):
        alone = tiny_networks.denoiser(CONTEXT[half], POOLED[half], TIME_IDS[half], copies=1)(LATENTS, 500.0)
        np.testing.assert_allclose(both[half], alone, atol=2e-5)


def test_conditions_computed_once_are_the_whole_network(tiny_networks, tiny_cells):
    """What a denoiser keeps over the steps gives what the UNet computes as one, as training sees it."""
    predict = tiny_networks.denoiser(CONTEXT[:2], POOLED[:2], TIME_IDS[:2], copies=1)
    vector = conditioning_vector(ms.Tensor(POOLED[:2]), ms.Tensor(TIME_IDS[:2]))
    for timestep in (999.0, 20.0):
        times = ms.Tensor(np.full(2, timestep, np.float32))
        whole = tiny_cells[0](ms.Tensor(LATENTS), times, ms.Tensor(CONTEXT[:2]), vector).asnumpy()
        np.testing.assert_allclose(predict(LATENTS, timestep), whole, atol=2e-5)


def test_a_fractional_timestep_is_not_rounded(tiny_networks):
    predict = tiny_networks.denoiser(CONTEXT, POOLED, TIME_IDS, copies=2)
    assert np.abs(predict(LATENTS, 500.0) - predict(LATENTS, 500.5)).max() > 1e-6


def test_text_and_pictures_go_in_and_out_as_numpy(tiny_networks):
    ids = np.zeros((2, 77), np.int32)
    context, pooled = tiny_networks.encode_text(ids, ids)
    assert (context.shape, pooled.shape) == ((2, 77, 128), (2, 64))
    decoded = tiny_networks.decode(LATENTS)
    assert decoded.shape == (2, 3, 72, 104)
    assert tiny_networks.encode(decoded).shape == (2, 8, 9, 13)


def test_a_checkpoint_of_the_unet_alone_is_refused_with_the_way_to_merge_it(tmp_path):
    path = tmp_path / "unet_100.ckpt"
    write_parameters(path, build_unet(TINY_SDXL.unet))
    with pytest.raises(SuiteError, match=r"has no autoencoder and no text encoders.*merge_weight\.py"):
        load_networks(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SuiteError, match=r"no such weight file.*nothing\.ckpt"):
        load_networks(tmp_path / "nothing.ckpt")
