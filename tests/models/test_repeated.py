"""Equal blocks are told apart from others by what they were built with, on Ascend alone."""

import inspect

import mindspore as ms
import pytest
from mindspore.common.lazy_inline import lazy_inline

from gm.models.unet import TransformerBlock


@pytest.fixture
def on_ascend(monkeypatch):
    monkeypatch.setattr("gm.models.repeated.ms.get_context", lambda name: {"device_target": "Ascend"}[name])


def test_the_contract_is_that_of_the_installed_release():
    assert list(inspect.signature(lazy_inline).parameters) == ["fn", "attrs", "policy"]


def test_a_cpu_compiles_every_block_for_itself():
    assert ms.get_context("device_target") == "CPU"
    assert not getattr(TransformerBlock(64, 8, 1), "cell_init_args", "").startswith("lazy_inline")


def test_on_ascend_blocks_of_equal_arguments_share_a_graph(on_ascend):
    one, same, wider, other_text = (
        TransformerBlock(channels, context, heads)
        for channels, context, heads in ((64, 8, 1), (64, 8, 1), (128, 8, 2), (64, 16, 1))
    )
    assert one.cell_init_args.startswith("lazy_inline_TransformerBlock")
    assert one.cell_init_args == same.cell_init_args
    assert len({block.cell_init_args for block in (one, wider, other_text)}) == 3


def test_its_construct_is_of_the_documented_kind():
    """Positional parameters without defaults."""
    parameters = list(inspect.signature(TransformerBlock.construct).parameters.values())[1:]
    assert {p.kind for p in parameters} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    assert all(p.default is inspect.Parameter.empty for p in parameters)
