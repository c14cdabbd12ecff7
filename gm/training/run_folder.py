"""Where a run keeps what it makes.

<run>/config.yaml  log.txt  metrics.jsonl  eval_loss.jsonl  tensorboard/  plots/{loss,eval_loss}.png
      samples/step_N/*.png  weights/unet_N.ckpt  state/step_N/  latest
"""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from logging.handlers import MemoryHandler
from pathlib import Path

from gm.config.sections.training import TrainConfig
from gm.errors import SuiteError, UsageError
from gm.files import write_text

MOST_KEPT = 1000  # lines of the log before it has a file

log = logging.getLogger(__name__)


def choose(config: TrainConfig) -> Path:
    """The folder of the run: ``save_path/run_name``, else ``save_path/<start time>``, else ``save_path`` itself."""
    path = Path(config.save_path)
    if config.run_name:
        return path / config.run_name
    if config.save_path_with_time:
        return path / datetime.now().strftime("%Y.%m.%d-%H.%M.%S")
    return path


class RunFolder:
    """The files of one run. ``resumed`` is the state folder to go on from, or None for a new run."""

    def __init__(self, path: Path, resumed: Path | None = None):
        self.path, self.resumed = path, resumed

    @classmethod
    def open(cls, config: TrainConfig) -> "RunFolder":
        """A new folder, or the one ``--resume`` names.

        Raises:
            SuiteError: the folder has a run already; nothing to resume from.
        """
        if not config.resume:
            path = choose(config)
            if (path / "latest").exists():  # without it nothing was saved yet: such a run starts again
                raise SuiteError(
                    f"{path} has a run already: go on with --resume latest, choose another --run_name, or remove it"
                )
            return cls(path)
        if config.resume == "latest":
            path = latest_run(config)
            state = path / "state" / (path / "latest").read_text(encoding="utf-8").strip()
        else:
            state = Path(config.resume)
            path = state.parent.parent
        folder = cls(path, state)
        if not (state / "state.json").is_file():
            saved = [folder.state(step) for step in folder.saved_steps() if folder.state(step) != state]
            there = f"take --resume {saved[-1]}" if saved else "name a folder state/step_N, or latest"
            raise SuiteError(f"{state} is no saved state of a run: {there}")
        return folder

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def evaluations(self) -> Path:
        return self.path / "eval_loss.jsonl"

    def samples(self, step: int) -> Path:
        return self.path / "samples" / f"step_{step}"

    def weights(self, step: int, average: bool = False) -> Path:
        return self.path / "weights" / f"unet_{'ema_' if average else ''}{step}.ckpt"

    def state(self, step: int) -> Path:
        return self.path / "state" / f"step_{step}"

    def saved_steps(self) -> list[int]:
        """Steps with a complete state, oldest first."""
        names = [path.name.removeprefix("step_") for path in (self.path / "state").glob("step_*")]
        return sorted(int(name) for name in names if name.isdigit())

    def older(self, state: Path) -> Path | None:
        """The newest complete state before ``state``."""
        number = state.name.removeprefix("step_")
        before = [step for step in self.saved_steps() if number.isdigit() and step < int(number)]
        return self.state(before[-1]) if before else None

    def remove_weights(self, step: int) -> None:
        for average in (False, True):
            self.weights(step, average).unlink(missing_ok=True)

    def mark_latest(self, step: int) -> None:
        write_text(self.path / "latest", f"step_{step}\n")

    def keep_newest(self, count: int | None, step: int) -> None:
        """Remove the oldest checkpoints beyond ``count``, weights and state together; that of ``step`` is the newest.

        Those after it are of steps that were taken back by resuming from an earlier state, and go first.
        """
        if count is None:
            return
        for old in sorted(self.saved_steps(), key=lambda saved: (saved <= step, saved))[:-count]:
            shutil.rmtree(self.state(old))
            self.remove_weights(old)
            log.info("removed the checkpoint of step %d (--max_num_ckpt %d)", old, count)


def latest_run(config: TrainConfig) -> Path:
    """The run that ``--resume latest`` means: the named one, or the newest in ``save_path``."""
    path = Path(config.save_path)
    if config.run_name:
        candidates = [path / config.run_name]
    else:
        candidates = [path, *(sorted(path.iterdir(), reverse=True) if path.is_dir() else [])]
    started = [candidate for candidate in candidates if (candidate / "latest").is_file()]
    if not started:
        raise UsageError(f"no run to resume in {candidates[0]}: leave --resume out to start one")
    return max(started, key=lambda candidate: (candidate / "latest").stat().st_mtime)


@contextmanager
def logged() -> Iterator[Callable[[Path], None]]:
    """Keep the log within the block; what it yields, given a file, writes there what was and will be said."""
    root, kept = logging.getLogger(), MemoryHandler(capacity=MOST_KEPT, flushLevel=logging.CRITICAL + 1)
    handlers: list[logging.Handler] = [kept]
    root.addHandler(kept)

    def write_to(path: Path) -> None:
        file = logging.FileHandler(path, encoding="utf-8")
        file.handleError = lambda record: None  # a full disk is told once, where it does harm
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        kept.setTarget(file)
        kept.flush()
        root.removeHandler(kept)
        root.addHandler(file)
        handlers.append(file)

    try:
        yield write_to
    finally:
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
