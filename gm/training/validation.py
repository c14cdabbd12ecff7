"""What a run looks at on its way without being changed by it: pictures of fixed seeds and the evaluation loss."""

import json
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from gm.config import Config
from gm.models.unet import UNet
from gm.training import metrics
from gm.training.eval_loss import EvalLoss, Evaluation
from gm.training.run_folder import RunFolder
from gm.training.timing import Compilations

# Sampling and evaluation stand after training in the order of the rooms, so a run is handed what draws: made once of
# the network that is trained, then called with the folder for the pictures of its present weights. It returns values
# for the metrics, such as scores of what it drew.
Draw = Callable[[Path], dict[str, float]]
MakeDraw = Callable[[Config, UNet], Draw]

log = logging.getLogger(__name__)


class Validation:
    """Evaluates and draws at the intervals of a configuration, before the first step and after the last.

    Args:
        done: the step a resumed run goes on after.
        eval_loss, draw: None for what is not asked for.
        compilations: on the run's stopwatch, which is told the seconds as ``eval`` and ``samples``.
        writes: whether this process, of several that all look at the same, keeps what it finds.
        lend: gives the block in which the network has the weights to look at.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        done: int,
        eval_loss: EvalLoss | None,
        draw: Draw | None,
        compilations: Compilations,
        writes: bool = True,
        lend: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self._folder, self._compilations, self._watch = folder, compilations, compilations.watch
        self._eval_loss, self._draw = eval_loss, draw
        self._intervals = config.validation.eval_interval, config.validation.infer_interval
        self._total = config.train.max_train_steps
        self._writes, self._lend = writes, lend
        if eval_loss is not None and writes:
            metrics.keep_until(folder.evaluations, done)

    def _due(self, step: int) -> tuple[bool, bool]:
        """Whether to evaluate, and whether to draw, after ``step``; 0 is before the first."""
        evaluate, draw = (step % interval == 0 or step == self._total for interval in self._intervals)
        return evaluate and self._eval_loss is not None, draw and self._draw is not None

    def due(self, step: int) -> bool:
        return any(self._due(step))

    def look(self, step: int, board: Callable[[int, dict[str, float]], None]) -> dict[str, float]:
        """Do what is due after ``step``; returns what belongs into the step's line of the metrics.

        ``board(step, values)`` shows values by tag.
        """
        with self._lend() if self.due(step) else nullcontext():
            return self._look(step, board)

    def _look(self, step: int, board: Callable[[int, dict[str, float]], None]) -> dict[str, float]:
        evaluate, draw = self._due(step)
        found: dict[str, float] = {}
        if evaluate:
            with self._watch("eval") as spent:
                evaluation = self._eval_loss.measure()
                self._compilations.book()
            found |= {"eval_loss": evaluation.mean, "eval_seconds": round(spent(), 4)}
            log.info("step %d: evaluation loss %.5f, in %.1f s", step, evaluation.mean, spent())
            if self._writes:
                self._note(step, evaluation, board)
        if draw:
            with self._watch("samples") as spent:
                scores = self._draw_into(self._folder.samples(step))
                self._compilations.book()
            told = f", CLIP score {scores['clip_score_mean']:.2f}" if "clip_score_mean" in scores else ""
            log.info("step %d: pictures drawn in %.1f s%s", step, spent(), told)
            found |= {**scores, "sample_seconds": round(spent(), 4)}
        return found

    def _draw_into(self, folder: Path) -> dict[str, float]:
        if self._writes:
            return self._draw(folder)
        with TemporaryDirectory() as unseen:
            return self._draw(Path(unseen))

    def _note(self, step: int, evaluation: Evaluation, board: Callable[[int, dict[str, float]], None]) -> None:
        with self._folder.evaluations.open("a", encoding="utf-8") as file:
            file.write(json.dumps(evaluation.record(step)) + "\n")
        of_timestep = zip(evaluation.timesteps, evaluation.losses)
        board(step, {f"eval_timesteps/{int(timestep):04d}": float(loss) for timestep, loss in of_timestep})
