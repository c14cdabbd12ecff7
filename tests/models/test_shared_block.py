"""One Cell for all transformer blocks alike computes what each block's own layers compute."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from gm.models import layers
from gm.models.divided import divide
from gm.models.layers import Initializer, Purpose, generalize
from gm.models.recompute import recompute
from gm.models.unet import TransformerBlock

CHANNELS, CONTEXT, HEADS = 64, 24, 2


class Slopes(nn.Cell):
    """Outputs of two blocks in a row, and the gradients of their inputs and weights along a direction."""

    def __init__(self, blocks: list[TransformerBlock]):
        super().__init__()
        self.blocks = nn.CellList(blocks)
        self.gradients = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)
        self.weights = ms.ParameterTuple(self.trainable_params())
        self.chain = Chain(self.blocks)

    def construct(self, x, context, direction):
        return self.chain(x, context), self.gradients(self.chain, self.weights)(x, context, direction)


class Chain(nn.Cell):
    def __init__(self, blocks):
        super().__init__(auto_prefix=False)
        self.blocks = blocks

    def construct(self, x, context):
        for block in self.blocks:
            x = block(x, context)
        return x


@pytest.fixture
def blocks(monkeypatch):
    monkeypatch.setattr(Initializer, "current", np.random.default_rng(0))
    return [TransformerBlock(CHANNELS, CONTEXT, HEADS) for _ in range(2)]


def numbers(found) -> list[np.ndarray]:
    return [part for one in found for part in numbers(one)] if isinstance(found, tuple) else [found.asnumpy()]


def test_equals_the_blocks_by_themselves(blocks):
    ms.set_context(mode=ms.GRAPH_MODE)
    rng = np.random.default_rng(1)
    shapes = ((2, 12, CHANNELS), (2, 5, CONTEXT), (2, 12, CHANNELS))
    given = [Tensor(rng.normal(size=shape).astype(np.float32)) for shape in shapes]
    for parameter in (parameter for block in blocks for parameter in block.get_parameters()):
        parameter.set_data(Tensor(rng.normal(0.1, 0.3, parameter.shape).astype(np.float32)))
    assert blocks[0].shared is blocks[1].shared is not None
    together = numbers(Slopes(blocks)(*given))
    for block in blocks:
        block.by_itself()
    apart = numbers(Slopes(blocks)(*given))
    assert len(together) == 3 + 2 * 20
    for one, other in zip(together, apart):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())


def test_alike_are_those_of_one_shape_only(blocks):
    assert TransformerBlock(CHANNELS, 8, HEADS).shared is blocks[0].shared
    assert TransformerBlock(CHANNELS, CONTEXT, 1).shared is not blocks[0].shared


def test_weights_keep_their_names(blocks):
    assert {parameter.name for parameter in blocks[0].get_parameters()} >= {"norm1.weight", "attn1.to_q.weight"}
    assert not list(blocks[0].shared.get_parameters())


def test_where_weights_are_not_plain_each_block_computes_by_itself(blocks, monkeypatch):
    generalize(blocks[0])
    assert blocks[0].shared is None
    recompute(blocks[1], "transformer")
    assert blocks[1].shared is None
    block = TransformerBlock(CHANNELS, CONTEXT, HEADS)
    divide(nn.SequentialCell(block), type("Group", (), {"size": 1, "index": 0, "name": "alone"})())
    assert block.shared is None
    monkeypatch.setattr(Purpose, "inference", True)
    assert TransformerBlock(CHANNELS, CONTEXT, HEADS).shared is None
    monkeypatch.setattr(Purpose, "inference", False)
    monkeypatch.setattr(layers, "STAND_INS", {})
    assert TransformerBlock(CHANNELS, CONTEXT, HEADS).shared is None
