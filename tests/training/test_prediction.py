"""What a mesh takes, counted from shapes: against real tensors, and against sums done by hand."""

import pytest

from gm.config import Config
from gm.config.sections.machine import ParallelConfig
from gm.models.architecture import TINY_SDXL, ModelArchitecture
from gm.models.build import build_unet
from gm.models.precision import set_precision
from gm.parallel.collectives import Group
from gm.parallel.mesh import Mesh
from gm.parallel.world import World
from gm.training.assemble import assemble
from gm.training.memory import weights_of_run
from gm.training.prediction import persistent, traffic, weights_of

SDXL = 2_567_463_684  # parameters of SDXL base's UNet


def nbytes(parameters) -> int:
    return sum(one.size * one.itemsize for one in {id(parameter): parameter for parameter in parameters}.values())


def configuration(stage: int = 0, half: bool = False, fsdp: int | None = None) -> Config:
    config = Config()
    config.parallel = ParallelConfig(zero_stage=stage, ici_fsdp_parallelism=fsdp)
    config.optim.use_ema, config.optim.gradient_accumulation_steps = True, 2
    if half:
        config.launch.precision, config.launch.param_fp16 = "fp16", True
    return config


class Member(World):
    """One of several, that never speaks: its groups know sizes and places only."""

    def __init__(self, mesh: Mesh):
        super().__init__(mesh)
        self.group = lambda *axes: Group("silent", mesh.degree(*axes), mesh.index(*axes), everyone=False)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_what_is_kept_is_what_the_tensors_take(monkeypatch, stage, half):
    """The parts of one of eight devices are really made, for the tiny SDXL, and counted."""
    config = configuration(stage, half)
    mesh = Mesh.of(config.parallel, 8, rank=3)
    weights = weights_of(config, TINY_SDXL)
    unet = build_unet(TINY_SDXL.unet, seed=1)
    set_precision(unet, config.launch.precision, half)
    monkeypatch.setattr("mindspore.ops.AllReduce", lambda *arguments: lambda x: x)
    parts = assemble(config, TINY_SDXL, unet, world=Member(mesh))
    assert sorted(weights_of_run(parts), key=str) == sorted(weights, key=str)
    found = persistent(config, weights, mesh)
    optimizer = getattr(parts.optimizer, "inner", parts.optimizer)
    held = [*optimizer.masters, *optimizer.moments, *optimizer.copies, *parts.state, *parts.ema.state, *parts.weights]
    assert found.kept == pytest.approx(nbytes(held), rel=1e-6)
    assert found.weights == nbytes(parts.weights)
    assert found.average == nbytes(parts.ema.state)
    assert found.sums == nbytes(parts.step.gather.sums.totals)


def test_sdxl_by_hand():
    architecture, config = ModelArchitecture(), configuration()
    weights = weights_of(config, architecture)
    alone = persistent(config, weights, Mesh())
    assert alone.weights == alone.average == alone.sums == 4 * SDXL
    assert alone.optimizer == 8 * SDXL + 4
    third = configuration(3)
    eight = persistent(third, weights, Mesh.of(third.parallel, 8))
    assert eight.kept == pytest.approx(alone.kept / 8, rel=0.01)
    half = persistent(configuration(half=True), weights_of(configuration(half=True), architecture), Mesh())
    assert half.weights == pytest.approx(2 * SDXL, rel=0.001)
    assert half.optimizer == pytest.approx(12 * SDXL, rel=0.001)


def test_traffic_by_hand():
    architecture = ModelArchitecture()

    def sent(stage: int, devices: int, fsdp: int | None = None, turns: int = 1) -> int:
        config = configuration(stage, fsdp=fsdp)
        config.optim.gradient_accumulation_steps = turns
        weights = weights_of(config, architecture)
        return sum(traffic(config, architecture, weights, Mesh.of(config.parallel, devices), (1024, 1024)).values())

    assert sent(0, 2) == 4 * SDXL
    assert sent(0, 8) == sent(1, 8) == sent(2, 8) == pytest.approx(7 * SDXL, rel=1e-6)
    assert sent(1, 8, turns=4) == sent(1, 8)
    assert sent(2, 8, turns=4) == pytest.approx((4 + 1) * 3.5 * SDXL, rel=1e-6)
    assert sent(3, 8) == pytest.approx(3 * 3.5 * SDXL, rel=0.01)
    # two servers of four: half of the gradients' shards once more between them
    assert sent(2, 8, fsdp=4) == pytest.approx((3 + 3 + 1) * SDXL, rel=1e-6)
