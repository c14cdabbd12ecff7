"""Recomputation changes what is kept, never the numbers."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from gm.compilation import fingerprint
from gm.models.architecture import TINY_SDXL, UNetArchitecture
from gm.models.build import build_conditioner, build_unet
from gm.models.recompute import recompute

SMALL = UNetArchitecture(
    channels=(64,), down_depths=((1,),), mid_depth=None, up_depths=((1, 0),), context_dim=8, vector_dim=None
)


class Loss(nn.Cell):
    def __init__(self, unet):
        super().__init__(auto_prefix=False)
        self.unet = unet

    def construct(self, latents, timesteps, context):
        return ops.mean(ops.square(self.unet(latents, timesteps, context)))


class Gradients(nn.Cell):
    def __init__(self, unet):
        super().__init__(auto_prefix=False)
        self.differentiate = ops.value_and_grad(Loss(unet), None, unet.trainable_params())

    def construct(self, latents, timesteps, context):
        return self.differentiate(latents, timesteps, context)


def network(what: str):
    unet = build_unet(SMALL, seed=1)
    for parameter in unet.get_parameters():  # none of them zero, so that every gradient is something
        noise = np.random.default_rng(parameter.size).standard_normal(parameter.shape)
        parameter.set_data(Tensor(parameter.asnumpy() + 0.05 * noise, ms.float32))
    return unet, recompute(unet, what)


@pytest.mark.slow
def test_loss_and_gradients_are_those_without():
    ms.set_context(mode=ms.GRAPH_MODE)
    rng = np.random.default_rng(0)
    shapes = ((2, 4, 8, 8), (2,), (2, 7, 8))
    inputs = [Tensor(rng.standard_normal(shape), ms.float32) for shape in shapes]
    results, kept = {}, []
    for what in ("none", "transformer", "all"):
        unet, _ = network(what)
        cell = Gradients(unet)
        cell.set_train()
        kept.append(cell)
        results[what] = cell(*inputs)
    loss, gradients = results["none"]
    for what in ("transformer", "all"):
        assert float(results[what][0].asnumpy()) == pytest.approx(float(loss.asnumpy()), rel=1e-6)
        for one, other in zip(results[what][1], gradients):
            expected = other.asnumpy()
            np.testing.assert_allclose(one.asnumpy(), expected, atol=1e-6 * np.abs(expected).max(), rtol=1e-6)


def test_the_flag_is_on_the_blocks_and_in_the_graph():
    counts = {what: network(what) for what in ("none", "transformer", "all")}
    assert {what: count for what, (_, count) in counts.items()} == {"none": 0, "transformer": 2, "all": 6}
    assert len({fingerprint(unet) for unet, _ in counts.values()}) == 3


def test_the_layers_of_text_encoders_are_transformer_blocks():
    assert recompute(build_conditioner(TINY_SDXL), "transformer") == 4
