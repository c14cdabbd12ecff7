"""A run of the small network as a process of its own: ``small_run.py FOLDER STEPS [resume] [BATCH=SIGNAL ...]``."""

import importlib.util
import logging
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import gm  # noqa: F401  (prepares the environment MindSpore reads at import)
from gm.config.schema import Config
from gm.training.loop import Run
from gm.training.run_folder import RunFolder

SIZE = 2
STEPS_PER_EPOCH = 5


def conftest():
    """The neighbouring conftest, whether or not pytest has loaded it."""
    spec = importlib.util.spec_from_file_location("small_conftest", Path(__file__).with_name("conftest.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class FakeBatches:
    """Endless batches that follow from the cursor alone; ``events`` maps counts of batches to what happens then."""

    steps_per_epoch = STEPS_PER_EPOCH
    sizes = ((64, 64),)

    def __init__(self, make_batch, cursor=(0, 0), events=None):
        self.make_batch, self.cursor, self.events = make_batch, cursor, events or {}

    def __next__(self):
        epoch, index = self.cursor
        number = epoch * STEPS_PER_EPOCH + index + 1
        batch = self.make_batch(SIZE, seed=number)
        event = self.events.get(number)
        if event == "nan":
            batch["noise"][0, 0, 0, 0] = float("nan")
        elif event is not None:
            os.kill(os.getpid(), event)
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


def start(config: Config, network, make_batch, events=None) -> Run:
    """The run that ``train`` would start, on the small network and its batches."""
    from gm.training.state import read_progress

    folder = RunFolder.open(config.train)
    folder.path.mkdir(parents=True, exist_ok=True)
    cursor = read_progress(folder.resumed).cursor if folder.resumed else (0, 0)
    architecture = SimpleNamespace(latent_scale=0.13025, unet=SimpleNamespace(vector_dim=1))
    return Run(config, folder, architecture, network, FakeBatches(make_batch, cursor, events))


def main(folder: str, steps: str, *events: str) -> None:
    """``events``: ``resume``, or NUMBER=SIGNAL, the signal sent to itself while it reads that batch."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE)
    parts = conftest()
    config = configuration(Path(folder), int(steps))
    config.train.resume = "latest" if "resume" in events else None
    signals = dict(event.split("=") for event in events if "=" in event)
    due = {int(number): getattr(signal, name) for number, name in signals.items()}
    start(config, parts.SmallUNet(), parts.batch_of, due).go()


if __name__ == "__main__":
    main(*sys.argv[1:])
