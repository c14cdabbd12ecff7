"""The training run: from a configuration to a folder of weights, metrics and state."""

import logging
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from gm.config import Config
from gm.data.batches import Batches
from gm.errors import SuiteError
from gm.files import write_text
from gm.models import architecture as architectures
from gm.models.build import build_unet
from gm.models.unet import UNet
from gm.training import metrics, state
from gm.training.ema import EMA
from gm.training.loss import DiffusionLoss
from gm.training.lr import learning_rate
from gm.training.optimizer import AdamW
from gm.training.plots import plot_loss
from gm.training.run_folder import RunFolder
from gm.training.step import AccumulatingStep, TrainStep, tensors
from gm.weights.files import open_weights
from gm.weights.load import load_into

# What --weight "" builds.
UNTRAINED = {"sdxl-base": architectures.ModelArchitecture(), "tiny": architectures.TINY_SDXL}

log = logging.getLogger(__name__)


def train(config: Config) -> None:
    """Train the UNet as ``config`` says, or only report what that would be with ``dry_run``.

    SIGINT and SIGTERM let the running step end, save, and return normally; ``--resume latest`` goes on from there.

    Raises:
        SuiteError: anything the user can mend; the last saved state is intact.
    """
    folder = RunFolder.open(config.train)
    with timed("weights"):
        architecture, unet = load_unet(config)
    with timed("data"):
        cursor = state.read_progress(folder.resumed).cursor if folder.resumed else (0, 0)
        batches = Batches.of(config, cursor)
    with batches:
        report(config, unet, batches)
        if config.dry_run:
            return
        folder.path.mkdir(parents=True, exist_ok=True)
        with logging_to(folder.path / "log.txt"):
            write_text(folder.path / "config.yaml", config.to_yaml())
            Run(config, folder, architecture, unet, batches).go()


def load_unet(config: Config) -> tuple[architectures.ModelArchitecture, UNet]:
    """The UNet of the weights file, or an untrained one of ``model.architecture``."""
    if not config.model.weight:
        architecture = UNTRAINED[config.model.architecture]
        return architecture, build_unet(architecture.unet, seed=config.train.seed)
    with open_weights(config.model.weight) as weights:
        architecture = weights.architecture()
        if architecture.unet is None:
            raise SuiteError(f"{config.model.weight} has no UNet to train: it is {weights.describe()}")
        unet = build_unet(architecture.unet)
        load_into(unet, weights)
    return architecture, unet


def report(config: Config, unet: UNet, batches: Batches) -> None:
    """Say what will be trained, on what, and what it takes."""
    count = sum(parameter.size for parameter in unet.trainable_params())
    copies = 4 + config.optim.use_ema  # weights, gradients, two moments, the average
    samples = config.data.per_batch_size * config.optim.gradient_accumulation_steps
    epochs = config.train.max_train_steps / batches.steps_per_epoch
    sizes = ", ".join(f"{width}x{height}" for height, width in batches.sizes)
    log.info(
        "training %s parameters; they, their gradients and AdamW's state take %s",
        f"{count:,}",
        size(4 * count * copies),
    )
    log.info(
        "%d steps of %d samples: %.1f epochs of %d steps",
        config.train.max_train_steps,
        samples,
        epochs,
        batches.steps_per_epoch,
    )
    log.info("pictures of %s: %d compilation%s", sizes, len(batches.sizes), "s" * (len(batches.sizes) > 1))


def size(count: int) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


class Run:
    """A run from its first step, or the one it resumes at, to its last."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        architecture: architectures.ModelArchitecture,
        unet: UNet,
        batches: Batches,
    ):
        self.config, self.folder, self.batches = config, folder, batches
        optim = config.optim
        self.weights = unet.trainable_params()
        self.optimizer = AdamW(self.weights, optim.beta1, optim.beta2, optim.epsilon, optim.weight_decay)
        self.ema = EMA(self.weights, optim.ema_decay) if optim.use_ema else None
        loss = DiffusionLoss(unet, architecture.latent_scale, with_vector=architecture.unet.vector_dim is not None)
        max_norm = optim.max_grad_norm if optim.clip_grad else None
        if optim.gradient_accumulation_steps == 1:
            self.step = TrainStep(loss, self.optimizer, max_norm, self.ema)
        else:
            self.step = AccumulatingStep(loss, self.optimizer, max_norm, self.ema, optim.gradient_accumulation_steps)
        self.step.set_train()
        self.done, self.saved, self.compiled = 0, None, False
        self.unread: list[tuple[int, tuple[Tensor, ...]]] = []  # steps and what they returned, not fetched yet
        if folder.resumed:
            progress = state.restore(folder, self.weights, self.optimizer, self.ema)
            if progress.seed != config.train.seed:
                raise SuiteError(f"the run has seed {progress.seed}: resume it with --seed {progress.seed}")
            self.done = self.saved = progress.step
            log.info("resuming after step %d", self.done)

    def go(self) -> None:
        """Train to the end, or to an interruption; either way the last step is saved."""
        total = self.config.train.max_train_steps
        if self.done >= total:
            log.info("nothing to do: step %d of %d is done", self.done, total)
            return
        interval = self.config.train.save_ckpt_interval
        with (
            metrics.Metrics(self.folder.metrics, self.folder.path / "tensorboard", self.done) as self.metrics,
            tqdm(total=total, initial=self.done, unit="step", dynamic_ncols=True, smoothing=0.1) as self.bar,
            logging_redirect_tqdm(),
            Interruption() as interruption,
        ):
            while self.done < total and not interruption.requested:
                self.one_step()
                if self.done % interval == 0:
                    self.save()
            if self.saved != self.done:
                self.save()
        if self.folder.metrics.stat().st_size:
            plot_loss(metrics.read(self.folder.metrics), self.folder.path / "plots" / "loss.png")
        if self.done < total:
            log.info("interrupted after step %d of %d, all saved: go on with --resume latest", self.done, total)
        else:
            log.info("done: %s", self.folder.weights(self.done))

    def one_step(self) -> None:
        optim, train = self.config.optim, self.config.train
        first, self.compiled = not self.compiled, True
        started = time.monotonic()
        peak = optim.learning_rate
        if optim.scale_lr:
            peak *= self.config.data.per_batch_size * optim.gradient_accumulation_steps
        lr = learning_rate(optim.lr_scheduler, self.done, peak, optim.lr_warmup_steps, train.max_train_steps)
        parts = [tensors(next(self.batches)) for _ in range(optim.gradient_accumulation_steps)]
        waited = time.monotonic() - started
        if first:
            self.bar.set_postfix_str("compiling")
        rate = Tensor(np.float32(lr), ms.float32)
        step = self.done + 1
        self.unread.append((step, self.step.take(parts, rate)))
        if step % train.log_interval == 0 or first:
            loss, raw_loss, norm = self.fetch()
            seconds = time.monotonic() - started
            if first:
                log.info("compiled and took the first step in %.1f s", seconds)
            samples = self.config.data.per_batch_size * len(parts)
            speed = samples / seconds
            self.metrics.add(
                step,
                loss=loss,
                raw_loss=raw_loss,
                lr=lr,
                grad_norm=norm,
                images_per_second=round(speed, 3),
                seconds=round(seconds, 4),
                data_seconds=round(waited, 4),
            )
            self.bar.set_postfix_str(f"loss {loss:.4f}, {speed:.1f} images/s")
        self.done = step
        self.bar.update()

    def fetch(self) -> tuple[float, float, float]:
        """Loss, plain loss and gradient norm of the newest step; the others not read yet are checked on the way."""
        unread, self.unread = self.unread, []
        for step, outputs in unread:
            loss, raw_loss, norm = (float(output.asnumpy()) for output in outputs)
            if not math.isfinite(loss + norm):
                self.stop_at_nonfinite(step, loss, norm)
        return loss, raw_loss, norm

    def stop_at_nonfinite(self, step: int, loss: float, norm: float) -> None:
        """End the run; the step has changed no weight, so what is saved is the last good one."""
        if self.saved != self.done:
            self.save()
        raise SuiteError(
            f"step {step}: loss {loss}, gradient norm {norm}; the weights of step {self.done} are saved and good: "
            "look at that batch's pictures, or lower --learning_rate, and go on with --resume latest"
        )

    def save(self) -> None:
        if self.unread:
            self.fetch()
        progress = state.Progress(self.done, self.batches.cursor, self.config.train.seed)
        state.save(self.folder, progress, self.weights, self.optimizer, self.ema)
        self.folder.keep_newest(self.config.train.max_num_ckpt)
        self.saved = self.done


class Interruption:
    """While active, the first SIGINT or SIGTERM only asks the loop to end; a second one is an ordinary Ctrl-C."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "Interruption":
        self.before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        log.info("%s: ending after this step; once more ends at once", signal.Signals(number).name)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Say how long a phase of the start-up took."""
    started = time.monotonic()
    yield
    log.info("%s: ready in %.1f s", what, time.monotonic() - started)


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Keep a copy of the log in a file."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
