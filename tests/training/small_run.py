"""A run of the small network as a process of its own.

    small_run.py FOLDER STEPS [resume] [NUMBER=EVENT ...] [section.key=value ...]

EVENT happens while batch NUMBER is read: a signal's name (sent to itself), ``nan`` (the batch is poisoned), ``gone``
(the picture cannot be read any more) or ``full`` (files can no longer grow: the disk is full for larger ones).
"""

import importlib.util
import logging
import os
import resource
import signal
import sys
import time
from ast import literal_eval
from pathlib import Path

import gm  # noqa: F401  (prepares the environment MindSpore reads at import)
from gm.config.schema import Config
from gm.errors import SuiteError, run_door
from gm.models.architecture import TINY_SDXL
from gm.training.assemble import assemble
from gm.training.run import Run
from gm.training.run_folder import RunFolder

SIZE = 2
STEPS_PER_EPOCH = 5
ROOM = 70_000  # bytes: the weights of the small network fit, its optimizer's state does not


def conftest():
    """The neighbouring conftest, whether or not pytest has loaded it."""
    spec = importlib.util.spec_from_file_location("small_conftest", Path(__file__).with_name("conftest.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class FakeBatches:
    """Endless batches that follow from the cursor alone; ``events`` maps counts of batches to what happens then.

    ``sides`` of the latents take turns.
    """

    steps_per_epoch = STEPS_PER_EPOCH

    def __init__(self, make_batch, cursor=(0, 0), events=None, sides=(8,), pause=0.0):
        self.make_batch, self.cursor, self.events = make_batch, cursor, events or {}
        self.sides, self.pause = sides, pause

    @property
    def sizes(self):
        return [(8 * side, 8 * side) for side in sorted(self.sides)]

    def __next__(self):
        time.sleep(self.pause)
        epoch, index = self.cursor
        number = epoch * STEPS_PER_EPOCH + index + 1
        batch = self.make_batch(SIZE, seed=number, side=self.sides[number % len(self.sides)])
        event = self.events.get(number)
        if event == "nan":
            batch["noise"][0, 0, 0, 0] = float("nan")
        elif event == "gone":
            raise SuiteError("picture a.png cannot be used: no such file; mend or remove it")
        elif event == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, ROOM))
        elif event is not None:
            os.kill(os.getpid(), getattr(signal, event))
        self.cursor = (epoch + (index + 1) // STEPS_PER_EPOCH, (index + 1) % STEPS_PER_EPOCH)
        return batch


def configuration(folder: Path, steps: int, **settings) -> Config:
    """A configuration that trains ``steps`` steps in ``folder``; ``section__leaf=value`` sets more."""
    config = Config()
    config.train.save_path, config.train.run_name = str(folder.parent), folder.name
    config.train.max_train_steps, config.train.save_ckpt_interval = steps, 4
    config.data.per_batch_size = SIZE
    config.optim.learning_rate, config.optim.lr_scheduler = 1e-2, "cosine"
    config.optim.lr_warmup_steps, config.optim.use_ema, config.optim.clip_grad = 3, True, True
    for name, value in settings.items():
        section, leaf = name.split("__")
        setattr(getattr(config, section), leaf, value)
    return config


def start(config: Config, network, make_batch, events=None, held_out=None, draw=None, **batches) -> Run:
    """The run that ``train`` would start, on the small network and its batches."""
    from gm.training.state import read_progress

    folder = RunFolder.open(config.train)
    folder.path.mkdir(parents=True, exist_ok=True)
    cursor = read_progress(folder).cursor if folder.resumed else (0, 0)
    source = FakeBatches(make_batch, cursor, events, **batches)
    parts = assemble(config, TINY_SDXL, network)
    return Run(config, folder, TINY_SDXL, parts, source, held_out, draw)


def main(arguments: list[str]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE)
    parts = conftest()
    folder, steps, *more = arguments
    pairs = dict(word.split("=") for word in more if "=" in word)
    pause = float(pairs.pop("pause", 0))
    settings = {key.replace(".", "__"): literal_eval(value) for key, value in pairs.items() if "." in key}
    config = configuration(Path(folder), int(steps), **settings)
    config.train.resume = "latest" if "resume" in more else None
    events = {int(number): event for number, event in pairs.items() if "." not in number}
    start(config, parts.SmallUNet(), parts.batch_of, events, pause=pause).go()


if __name__ == "__main__":
    run_door(main)
