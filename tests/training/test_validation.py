"""When a run evaluates and draws, and what is kept of it."""

from pathlib import Path

import numpy as np
import pytest

from gm.config import Config
from gm.training import metrics
from gm.training.eval_loss import Evaluation
from gm.training.run_folder import RunFolder
from gm.training.timing import Compilations, Stopwatch
from gm.training.validation import Validation


class FakeEvalLoss:
    def measure(self) -> Evaluation:
        return Evaluation(np.array([999, 499]), np.array([0.25, 0.75]))


@pytest.fixture
def make(tmp_path):
    """A Validation that evaluates every 3 of 10 steps and draws every 4, the folders drawn to and what was shown."""
    config = Config()
    config.train.max_train_steps = 10
    config.validation.eval_interval, config.validation.infer_interval = 3, 4
    drawn, shown = [], []

    def make(done: int = 0, evaluates: bool = True, draws: bool = True):
        def draw(folder: Path) -> dict[str, float]:
            drawn.append(folder)
            return {"clip_score_mean": 25.0}

        eval_loss = FakeEvalLoss() if evaluates else None
        validation = Validation(
            config, RunFolder(tmp_path), done, eval_loss, draw if draws else None, Compilations(Stopwatch())
        )
        return validation, drawn, lambda step, values: shown.append((step, values)), shown

    return make


def test_before_the_first_at_every_interval_and_after_the_last_step(make, tmp_path):
    validation, drawn, board, shown = make()
    found = {step: validation.look(step, board) for step in range(11) if validation.due(step)}
    assert list(found) == [0, 3, 4, 6, 8, 9, 10]
    assert drawn == [tmp_path / "samples" / f"step_{step}" for step in (0, 4, 8, 10)]
    assert set(found[3]) == {"eval_loss", "eval_seconds"}
    assert set(found[4]) == {"clip_score_mean", "sample_seconds"}
    assert found[10]["eval_loss"] == 0.5
    assert shown[0] == (0, {"eval_timesteps/0999": 0.25, "eval_timesteps/0499": 0.75})
    records = metrics.read(tmp_path / "eval_loss.jsonl")
    assert [record["step"] for record in records] == [0, 3, 6, 9, 10]
    assert records[0] == {"step": 0, "eval_loss": 0.5, "timesteps": [999, 499], "losses": [0.25, 0.75]}


def test_a_resumed_run_drops_the_evaluations_of_steps_taken_back(make, tmp_path):
    validation, _, board, _ = make()
    for step in (0, 3, 6):
        validation.look(step, board)
    make(done=4)
    assert [record["step"] for record in metrics.read(tmp_path / "eval_loss.jsonl")] == [0, 3]


def test_what_was_not_asked_for_is_never_due(make, tmp_path):
    validation, _, _, _ = make(evaluates=False, draws=False)
    assert not any(validation.due(step) for step in range(11))
    assert not (tmp_path / "eval_loss.jsonl").exists()
    assert [step for step in range(11) if make(evaluates=False)[0].due(step)] == [0, 4, 8, 10]
