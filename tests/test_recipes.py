"""The recipes that ship: they load, they are valid at both doors, and every value stands beside its reason."""

import dataclasses
import re
from pathlib import Path

import pytest

from gm.config import load
from gm.data.noising import trained_range

ROOT = Path(__file__).resolve().parents[1]
DATA = ["--data_path", "pictures"]
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_recipe_loads_and_is_valid_at_both_doors(recipe):
    load([*DATA, "--config", str(recipe)])
    load(["--prompt", "x", "--config", str(recipe)], door="sample")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_value_of_a_recipe_stands_beside_its_reason(recipe):
    values = [line for line in recipe.read_text().splitlines() if re.match(r"\s+\w+: \S", line)]
    assert [line for line in values if "  # " not in line] == []
    assert recipe.read_text().startswith("# ")


def test_the_tokenizer_of_the_inference_recipe_reaches_the_training_recipe():
    """The documentation tells users to change ``version:`` in one file only."""
    for name in ("sd_xl_base", "tiny_sdxl"):
        inference = load(["--prompt", "x", "--config", str(ROOT / f"configs/inference/{name}.yaml")], door="sample")
        training = load([*DATA, "--config", str(ROOT / f"configs/training/{name}.yaml")])
        assert dataclasses.asdict(inference.model) == dataclasses.asdict(training.model)
        assert inference.model.tokenizer


def training(name: str):
    return load([*DATA, "--config", str(ROOT / f"configs/training/{name}.yaml")])


@pytest.mark.parametrize("model", ["tiny_sdxl", "ssd_1b"])
def test_two_experts_share_everything_but_the_timesteps(model):
    one, two = training(f"{model}_stage_one"), training(f"{model}_stage_two")
    assert trained_range(one.diffusion) == (350, 1000)
    assert trained_range(two.diffusion) == (0, 350)
    assert one.diffusion.prediction_type == "v_prediction"
    assert one.diffusion.rescale_betas_zero_snr
    assert (one.validation.draws, two.validation.using_datasets) == (False, True)
    one.diffusion.refiner_training_invert_schedule = two.diffusion.refiner_training_invert_schedule
    one.validation = two.validation  # the second alone cannot draw from noise
    one.sample.height, one.sample.width = two.sample.height, two.sample.width  # pictures are drawn at --resolution
    assert one == two
    assert (one.sample.timestep_spacing, one.sample.guidance_rescale) == ("trailing", 0.7)


def test_ssd_1b_is_trained_as_its_guide_says():
    one = training("ssd_1b_stage_one")
    assert one.optim.learning_rate == 4e-7
    assert one.data.per_batch_size * one.optim.gradient_accumulation_steps == 8
