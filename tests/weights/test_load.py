"""Weights into networks: all of them, in the network's own type, or one line."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from gm.errors import SuiteError
from gm.models.architecture import TINY_SDXL
from gm.models.build import build_autoencoder, build_conditioner, build_unet
from gm.weights.dtypes import to_float32
from gm.weights.files import open_weights
from gm.weights.folder import ckpt_to_diffusers
from gm.weights.keys import expected_shapes
from gm.weights.load import common_prefix, load_into, write_parameters


class Pair(nn.Cell):
    """Two parameters with full names."""

    def __init__(self, dtype=ms.float32):
        super().__init__()
        self.a = Parameter(Tensor(np.zeros((3, 2), np.float32), dtype), name="part.a.weight")
        self.b = Parameter(Tensor(np.zeros(2, np.float32), dtype), name="part.b.bias")


PAIR = {"part.a.weight": (3, 2), "part.b.bias": (2,)}


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory, tiny_tensors):
    from gm.weights.ckpt import save_ckpt

    path = tmp_path_factory.mktemp("tiny") / "tiny.ckpt"
    save_ckpt(path, ((name, *rest) for name, rest in tiny_tensors.items()))
    return path


@pytest.mark.parametrize(
    "build",
    [
        lambda: build_unet(TINY_SDXL.unet),
        lambda: build_autoencoder(TINY_SDXL.autoencoder),
        lambda: build_conditioner(TINY_SDXL),
    ],
)
def test_every_network_takes_its_part_of_a_whole_file(tiny_file, tiny_tensors, build):
    network = build()
    with open_weights(tiny_file) as weights:
        load_into(network, weights)
    for parameter in network.get_parameters():
        np.testing.assert_array_equal(parameter.asnumpy(), tiny_tensors[parameter.name][2])


@pytest.mark.parametrize("family", ["refiner", "sd-1", "sd-2"])
def test_every_familys_text_encoder_takes_its_part_of_a_file_and_of_a_folder(
    tmp_path, families, make_tensors, write_ckpt, family
):
    path = write_ckpt(tmp_path / "model.ckpt", make_tensors(expected_shapes(families[family])))
    ckpt_to_diffusers(path, tmp_path / "folder")
    for source in (path, tmp_path / "folder"):
        with open_weights(source) as weights:
            conditioner = build_conditioner(weights.architecture())
            load_into(conditioner, weights)
            parts = [name for name in weights.names() if name.startswith(("conditioner.", "cond_stage_model."))]
            found = {parameter.name: parameter.asnumpy() for parameter in conditioner.get_parameters()}
            assert found.keys() - set(parts) <= {"cond_stage_model.model.logit_scale"}
            for name in parts:
                np.testing.assert_array_equal(found[name], weights.read(name))


@pytest.mark.parametrize("own", [ms.float32, ms.float16, ms.bfloat16])
@pytest.mark.parametrize("stored", ["F32", "F16", "BF16"])
def test_values_are_cast_to_the_parameters_type(tmp_path, make_tensors, write_ckpt, own, stored):
    tensors = make_tensors(PAIR, stored)
    cell = Pair(own)
    with open_weights(write_ckpt(tmp_path / "a.ckpt", tensors)) as weights:
        load_into(cell, weights)
    for parameter in cell.get_parameters():
        assert parameter.dtype == own
        _, tag, array = tensors[parameter.name]
        expected = Tensor(to_float32(array, tag)).astype(own).float().asnumpy()
        np.testing.assert_array_equal(parameter.float().asnumpy(), expected)


@pytest.mark.parametrize("own", [ms.float32, ms.float16, ms.bfloat16])
def test_written_parameters_come_back(tmp_path, make_tensors, write_ckpt, own):
    first, second = Pair(own), Pair(own)
    with open_weights(write_ckpt(tmp_path / "a.ckpt", make_tensors(PAIR))) as weights:
        load_into(first, weights)
    write_parameters(tmp_path / "b.ckpt", first)
    with open_weights(tmp_path / "b.ckpt") as weights:
        assert {weights.dtype(name) for name in weights.names()} == {
            {ms.float32: "F32", ms.float16: "F16", ms.bfloat16: "BF16"}[own]
        }
        load_into(second, weights)
    for one, other in zip(first.get_parameters(), second.get_parameters()):
        assert one.get_bytes() == other.get_bytes()
    assert set(ms.load_checkpoint(str(tmp_path / "b.ckpt"))) == set(PAIR)


def test_a_loaded_parameter_is_copied_with_its_values(tiny_file, tiny_tensors):
    """Optimizers and averages begin as copies of the network's parameters."""
    network = build_unet(TINY_SDXL.unet)
    with open_weights(tiny_file) as weights:
        load_into(network, weights)
    for parameter in list(network.get_parameters())[::50]:
        name = parameter.name
        np.testing.assert_array_equal(parameter.clone().asnumpy(), tiny_tensors[name][2])


def test_a_prefix_can_be_left_out(tmp_path):
    write_parameters(tmp_path / "a.ckpt", Pair(), without="part.")
    with open_weights(tmp_path / "a.ckpt") as weights:
        assert weights.names() == ["a.weight", "b.bias"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda shapes: shapes.pop("part.b.bias"), r"1 missing \(part.b.bias\).*fetch or save it again"),
        (lambda shapes: shapes.update({"part.c.bias": (2,)}), r"1 unexpected \(part.c.bias\).*own kind"),
        (lambda shapes: shapes.update({"part.b.bias": (5,)}), r"1 misshapen \(part.b.bias \(5,\) instead of \(2,\)\)"),
        (lambda shapes: shapes.update({f"part.x.{i}": (1,) for i in range(9)}), r"9 unexpected .*part.x.2, \.\.\."),
    ],
)
def test_anything_else_is_refused_and_nothing_loaded(tmp_path, make_tensors, write_ckpt, change, words):
    shapes = dict(PAIR)
    change(shapes)
    cell = Pair()
    with (
        open_weights(write_ckpt(tmp_path / "a.ckpt", make_tensors(shapes))) as weights,
        pytest.raises(SuiteError, match=words) as error,
    ):
        load_into(cell, weights)
    assert "\n" not in str(error.value)
    assert not any(parameter.asnumpy().any() for parameter in cell.get_parameters())


def test_keys_of_other_parts_are_not_looked_at(tmp_path, make_tensors, write_ckpt):
    tensors = make_tensors(PAIR | {"other.weight": (2,)})
    with open_weights(write_ckpt(tmp_path / "a.ckpt", tensors)) as weights:
        load_into(Pair(), weights)


def test_the_message_says_what_the_file_is(tmp_path, tiny_tensors, write_ckpt):
    autoencoder = {name: rest for name, rest in tiny_tensors.items() if name.startswith("first_stage_model.")}
    with (
        open_weights(write_ckpt(tmp_path / "vae.ckpt", autoencoder)) as weights,
        pytest.raises(SuiteError, match=r"[0-9]+ missing .* sdxl-like with an autoencoder: give one"),
    ):
        load_into(build_unet(TINY_SDXL.unet), weights)


def test_the_contrastive_scale_may_be_missing(tmp_path, tiny_tensors, write_ckpt):
    rest = {name: value for name, value in tiny_tensors.items() if not name.endswith("logit_scale")}
    with open_weights(write_ckpt(tmp_path / "a.ckpt", rest)) as weights:
        load_into(build_conditioner(TINY_SDXL), weights)


def test_nan_is_refused(tmp_path, make_tensors, write_ckpt):
    tensors = make_tensors(PAIR)
    tensors["part.b.bias"][2][0] = np.nan
    with (
        open_weights(write_ckpt(tmp_path / "a.ckpt", tensors)) as weights,
        pytest.raises(SuiteError, match=r"part.b.bias has NaN"),
    ):
        load_into(Pair(), weights)


def test_a_failed_write_leaves_the_old_file(tmp_path, make_tensors, write_ckpt):
    path = write_ckpt(tmp_path / "a.ckpt", make_tensors(PAIR))
    before = path.read_bytes()

    def parameters():
        yield next(iter(Pair().get_parameters()))
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_parameters(path, parameters())
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ckpt"]


def test_common_prefix_ends_at_a_level():
    assert common_prefix(["a.b.cd", "a.b.ce"]) == "a.b."
    assert common_prefix(["a.b", "c.b"]) == ""
    assert common_prefix(["model.x.weight"]) == "model.x."
    assert common_prefix([]) == ""
