"""The autoencoder against diffusers: all levels and blocks of the released one, narrow (DESIGN, promise 1)."""

import mindspore as ms
import numpy as np
import pytest

from gm.models.architecture import AutoencoderArchitecture
from gm.models.autoencoder import AutoencoderDecoder, AutoencoderEncoder
from gm.models.build import build_autoencoder
from gm.weights.load import load_into

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers.loaders import single_file_utils as single_file  # noqa: E402

from tests.models import reference  # noqa: E402

pytestmark = [pytest.mark.reference, pytest.mark.slow]

CHANNELS = (32, 64, 128, 128)
# Our names of what is compared, in the order of computation, and diffusers' names.
LAYERS = {
    "encode": {
        "encoder.conv_in": "encoder.conv_in",
        **{f"encoder.down.{level}": f"encoder.down_blocks.{level}" for level in range(4)},
        "encoder.mid": "encoder.mid_block",
        "encoder.conv_out": "encoder.conv_out",
        "quant_conv": "quant_conv",
    },
    "decode": {
        "post_quant_conv": "post_quant_conv",
        "decoder.conv_in": "decoder.conv_in",
        "decoder.mid": "decoder.mid_block",
        **{f"decoder.up.{3 - level}": f"decoder.up_blocks.{level}" for level in range(4)},
        "decoder.conv_out": "decoder.conv_out",
    },
}


@pytest.fixture(autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(5)
    network = diffusers.AutoencoderKL(
        block_out_channels=CHANNELS,
        layers_per_block=2,
        norm_num_groups=8,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=4,
    )
    return reference.randomize(network, 6)


@pytest.mark.parametrize(
    ("direction", "network", "shape"),
    [("encode", AutoencoderEncoder, (2, 3, 40, 56)), ("decode", AutoencoderDecoder, (2, 4, 5, 7))],
)
def test_autoencoder_equals_diffusers(theirs, tmp_path, direction, network, shape):
    with reference.converted({"vae": theirs}, tmp_path) as weights:
        found = weights.architecture().autoencoder
        assert found == AutoencoderArchitecture(channels=CHANNELS)
        ours = build_autoencoder(found)
        load_into(ours, weights)
    rng = np.random.default_rng(7)
    given = rng.uniform(-1, 1, shape)
    modules = dict(theirs.named_modules())
    with reference.watch({name: modules[name] for name in LAYERS[direction].values()}) as expected:
        if direction == "encode":
            output = theirs.encode(torch.tensor(given).float()).latent_dist.parameters
        else:
            output = theirs.decode(torch.tensor(given).float()).sample
    slopes = rng.normal(size=output.shape)
    theirs.zero_grad()
    (output * torch.tensor(slopes).float()).sum().backward()

    assert [name for name, _ in expected] == list(LAYERS[direction].values())
    seen = reference.record(ours, list(LAYERS[direction]), expected)
    result, gradients = reference.differentiate(network(ours), ours, slopes, [reference.tensor(given)])
    reference.assert_same_course(seen(), expected)
    reference.assert_close(result, output)
    assert len(gradients) == len(list(theirs.parameters()))
    reference.assert_gradients_close(single_file.convert_ldm_vae_checkpoint(gradients, theirs.config), theirs)
