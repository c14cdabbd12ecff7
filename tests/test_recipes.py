"""The recipes that ship: they load, they are valid at both doors, and every value stands beside its reason."""

import dataclasses
import re
from pathlib import Path

import pytest

from gm.config import load

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
