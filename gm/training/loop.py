"""The training run: from a configuration to a folder of weights, metrics and state."""

import logging
import math
import time

import mindspore as ms
import numpy as np
from mindspore import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from gm.config import Config
from gm.data.batches import Batches
from gm.errors import SuiteError
from gm.files import write_text
from gm.models.architecture import ModelArchitecture
from gm.models.unet import UNet
from gm.training import metrics, state
from gm.training.assemble import assemble, load_unet
from gm.training.interruption import Interruption
from gm.training.lr import learning_rate
from gm.training.plots import plot_loss
from gm.training.report import report
from gm.training.run_folder import RunFolder, logging_to
from gm.training.step import tensors
from gm.training.timing import timed

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


class Run:
    """A run from its first step, or the one it resumes at, to its last."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        architecture: ModelArchitecture,
        unet: UNet,
        batches: Batches,
    ):
        self.config, self.folder, self.batches = config, folder, batches
        parts = assemble(config, architecture, unet)
        self.weights, self.optimizer, self.ema, self.step = parts.weights, parts.optimizer, parts.ema, parts.step
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
