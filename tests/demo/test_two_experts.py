"""The comparison of two experts with one model: fair by its numbers, made of commands that their doors accept."""

import pytest
from PIL import Image

from demo.tiny import two_experts, world
from gm.config import load
from gm.data.noising import trained_range
from gm.errors import SuiteError

START, ONE_MODEL, *EXPERTS = two_experts.RECIPES


def training(name, out, steps=400):
    """What train.py makes of the command."""
    door, *arguments = two_experts.train(name, out, steps)
    assert door == "train.py"
    return load(arguments)


def test_both_sides_start_alike_and_see_as_many_pictures_and_every_timestep_as_often(tmp_path):
    one, experts = training(ONE_MODEL, tmp_path), [training(name, tmp_path) for name in EXPERTS]
    assert sum(expert.data.per_batch_size for expert in experts) == one.data.per_batch_size == two_experts.BATCH
    ranges = [trained_range(expert.diffusion) for expert in experts]
    assert ranges == [(350, 1000), (0, 350)]
    assert trained_range(one.diffusion) == (0, 1000)
    for expert, (begin, end) in zip(experts, ranges):
        assert expert.train.max_train_steps == one.train.max_train_steps == 400
        assert expert.data.per_batch_size / (end - begin) == pytest.approx(one.data.per_batch_size / 1000, rel=0.08)
        expert.data.per_batch_size = one.data.per_batch_size
        assert (expert.optim, expert.data, expert.model) == (one.optim, one.data, one.model)
        for same in ("prediction_type", "rescale_betas_zero_snr"):
            assert getattr(expert.diffusion, same) == getattr(one.diffusion, same)
        assert not expert.validation.draws
    start = training(START, tmp_path)
    assert start.model.weight == two_experts.BASE
    assert one.model.weight == str(tmp_path / "start.ckpt")
    assert start.diffusion == one.diffusion


def test_both_sides_draw_alike(tmp_path):
    drawn = [
        two_experts.sample(tmp_path, "one_model.ckpt", "a"),
        two_experts.sample(tmp_path, "stage_one.ckpt", "b", "--stage2_weight", "two.ckpt", "--denoising_end", "0.65"),
    ]
    one, experts = (load(arguments[1:], door="sample") for arguments in drawn)
    assert experts.sample.stage2_weight == "two.ckpt"
    assert experts.sample.denoising_end == 1 - training("stage_two", tmp_path).diffusion.refiner_training_strength
    for config in (one, experts):
        config.model.weight = config.sample.save_path = config.sample.stage2_weight = ""
        config.sample.denoising_end = None
    assert one == experts
    assert (one.diffusion.prediction_type, one.sample.timestep_spacing) == ("v_prediction", "trailing")


def test_an_interrupted_training_goes_on(tmp_path):
    assert training(ONE_MODEL, tmp_path).train.resume is None
    (tmp_path / ONE_MODEL).mkdir()
    (tmp_path / ONE_MODEL / "latest").touch()
    assert training(ONE_MODEL, tmp_path).train.resume == "latest"


def test_the_judge_counts_every_seed(tmp_path, monkeypatch):
    wanted = [world.Prompt("a red circle on grey", "red", "circle"), world.Prompt("x", "blue", "square")]
    monkeypatch.setattr(two_experts, "SEEDS", 4)
    shapes = ["circle", "circle", "square", "circle", "square", "square", "square", "circle"]
    for index, shape in enumerate(shapes):
        corners = world.corners(shape) * 0.3 + 0.5
        picture = world.paint(64, world.GROUNDS["grey"], [(corners, world.COLOURS["red"])])
        picture.save(tmp_path / f"{index:03d}_seed{index}_x.png")
    assert two_experts.counted(tmp_path, wanted) == {"pictures": 8, "right": 3, "colour": 4, "shape": 6}
    two_experts.draw_grid(tmp_path, [".", "."], wanted)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 100
    (tmp_path / "000_seed0_x.png").unlink()
    with pytest.raises(SuiteError, match="has 7 pictures, not 8"):
        two_experts.counted(tmp_path, wanted)
