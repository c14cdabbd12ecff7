"""The doors of the evaluation tools: what is told before anything is loaded, in one line."""

import json

import pytest
from PIL import Image

from gm.config.parsing import take_list
from gm.errors import UsageError
from gm.launch import Device

CLIP_SCORE, EVAL_LOSS, COMPARE = (f"tools/eval/{name}.py" for name in ("clip_score", "eval_loss", "compare"))
WEIGHT = ("--weight", "demo/tiny/tiny_sdxl.safetensors")


@pytest.fixture(autouse=True)
def started(monkeypatch):
    """The device of this process is ready; setting it up a second time is an error of MindSpore."""
    monkeypatch.setattr("gm.launch.start", lambda launch: Device("CPU"))
    monkeypatch.setattr("gm.evaluation.run.start_device", lambda config: None)


@pytest.mark.parametrize(
    ("tool", "arguments", "code", "words"),
    [
        (CLIP_SCORE, ["--weight", "x"], 2, "--data_path"),
        (CLIP_SCORE, ["--weight", "x", "--data", "y"], 2, "unknown flag --data: did you mean --data_path?"),
        (EVAL_LOSS, ["--data_path", "x"], 2, "nothing to evaluate: name a whole model with --weight"),
        (EVAL_LOSS, [*WEIGHT], 2, "nothing to evaluate on"),
        (EVAL_LOSS, [*WEIGHT, "--checkpoints"], 2, "--checkpoints needs at least one value"),
        (EVAL_LOSS, [*WEIGHT, "--eval_timestep", "3"], 2, "did you mean --eval_timesteps?"),
        (COMPARE, [*WEIGHT, "--prompt", "x"], 2, "nothing to compare: --checkpoints"),
        (COMPARE, [*WEIGHT, "--checkpoints", "a.ckpt"], 2, "nothing to draw: --prompt"),
        (COMPARE, [*WEIGHT, "--checkpoints", "a.ckpt", "--prompt", "x"], 1, "no such checkpoint: a.ckpt"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(run, tool, arguments, code, words):
    left, _, err = run(tool, *arguments)
    assert left == code
    assert words in err.splitlines()[-1]
    assert err.count("error: ") == 1


def test_a_flag_of_several_values_is_taken_out_of_the_others():
    given = ["--weight", "w", "--checkpoints", "a", "b", "--prompt", "p", "data.resolution=64", "--checkpoints=c"]
    assert take_list(given, "--checkpoints") == (
        ["a", "b", "c"],
        ["--weight", "w", "--prompt", "p", "data.resolution=64"],
    )
    assert take_list(["--weight", "w"], "--checkpoints") == ([], ["--weight", "w"])
    with pytest.raises(UsageError, match="--checkpoints needs at least one value"):
        take_list(["--checkpoints", "--weight", "w"], "--checkpoints")


def test_a_folder_that_is_no_clip_is_told(run, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for folder, words in ((tmp_path, "has no model.safetensors"), (tmp_path / "none", "no such weight file")):
        code, _, err = run(CLIP_SCORE, "--weight", folder, "--data_path", tmp_path)
        assert code == 1
        assert words in err
    (tmp_path / "config.json").write_text(json.dumps({}))
    code, _, err = run(CLIP_SCORE, "--weight", WEIGHT[1], "--data_path", tmp_path)
    assert (code, err.count("error: ")) == (1, 1)
