"""The key list by rule is the key list of the released files and of our networks."""

import gzip
import math
from pathlib import Path

import pytest

from gm.models.architecture import ModelArchitecture
from gm.models.build import build_autoencoder, build_conditioner, build_unet
from gm.weights.detect import KNOWN_UNETS
from gm.weights.keys import expected_shapes, unet_shapes


def released_sdxl_base() -> dict:
    """Key -> shape of sd_xl_base_1.0.safetensors."""
    shapes = {}
    for line in gzip.decompress((Path(__file__).parent / "sdxl_base_keys.tsv.gz").read_bytes()).decode().splitlines():
        name, shape = line.split("\t")
        shapes[name] = () if shape == "scalar" else tuple(map(int, shape.split("x")))
    return shapes


def test_sdxl_base_is_the_released_file():
    released = released_sdxl_base()
    del released["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"]  # a constant
    assert expected_shapes(ModelArchitecture()) == released


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("sdxl-base", 2_567_463_684),
        ("sdxl-refiner", 2_259_526_660),
        ("ssd-1b", 1_331_334_404),
        ("vega", 745_225_604),
        ("sd-1", 859_520_964),
        ("sd-2", 865_910_724),
    ],
)
def test_parameter_counts_are_the_published_ones(name, count):
    assert sum(math.prod(shape) for _, shape in unet_shapes(KNOWN_UNETS[name])) == count


def test_our_networks_have_exactly_these_parameters(model):
    """At full size: networks that wait for a file take no memory."""
    networks = build_unet(model.unet), build_autoencoder(model.autoencoder), build_conditioner(model)
    parameters = [parameter for network in networks for parameter in network.get_parameters()]
    assert {parameter.name: tuple(parameter.shape) for parameter in parameters} == expected_shapes(model)
    assert all(parameter.has_init for parameter in parameters if len(parameter.shape) > 1)
