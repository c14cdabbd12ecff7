from pathlib import Path

import pytest

from gm.config import load
from gm.sampling.run import settings

RECIPES = Path(__file__).parents[2] / "configs/inference"


def test_scores_of_the_command_line_reach_the_refiner():
    arguments = [
        "--prompt",
        "x",
        "--config",
        str(RECIPES / "sd_xl_refiner.yaml"),
        "--task",
        "img2img",
        "--img",
        "x.png",
    ]
    chosen = settings(load(arguments, door="sample"))
    assert (chosen.time_ids(5)[-1], chosen.time_ids(5, negative=True)[-1], chosen.strength) == (6.0, 2.5, 0.3)
    arguments += ["--aesthetic_score", "7", "--negative_aesthetic_score", "1"]
    chosen = settings(load(arguments, door="sample"))
    assert (chosen.time_ids(5)[-1], chosen.time_ids(5, negative=True)[-1]) == (7.0, 1.0)


@pytest.mark.parametrize(
    ("recipe", "kind"), [("sd_1_5", "epsilon"), ("sd_2_1", "v_prediction"), ("sd_xl_base", "epsilon")]
)
def test_a_recipe_says_what_its_model_predicts(recipe, kind):
    config = load(["--prompt", "x", "--config", str(RECIPES / f"{recipe}.yaml")], door="sample")
    assert config.diffusion.prediction_type == kind
    assert settings(config).unconditional == "auto"
