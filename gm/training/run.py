"""The life of a run: step after step, logged, looked at and saved, until its end or an interruption."""

import logging
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import mindspore as ms
import numpy as np
from mindspore import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from gm.config import Config
from gm.config.sections.training import TrainConfig
from gm.data.batches import Batch, Batches
from gm.data.tokens import context_length
from gm.errors import SuiteError, os_error_reason
from gm.models import flops
from gm.models.architecture import ModelArchitecture
from gm.parallel.world import World
from gm.training import eval_loss, metrics, plots, state
from gm.training.assemble import Parts
from gm.training.interruption import Interruption
from gm.training.lr import learning_rate
from gm.training.recorder import NotFinite, Recorder, Taken
from gm.training.run_folder import RunFolder
from gm.training.sink import feed
from gm.training.timing import Compilations, Stopwatch, timed
from gm.training.validation import Draw, Validation

log = logging.getLogger(__name__)


class Run:
    """A run from its first step, or the one it resumes at, to its last.

    ``held_out``: batches for the evaluation loss; ``draw``: draws pictures with the UNet into a folder. Each process of
    a ``world`` has a run of its own; they take the same steps, and the first one writes.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        architecture: ModelArchitecture,
        parts: Parts,
        batches: Batches,
        held_out: list[Batch] | None = None,
        draw: Draw | None = None,
        world: World | None = None,
    ):
        self.config, self.folder, self.world = config, folder, world or World()
        parts.step.set_train()
        self.parts, self.step = parts, parts.step
        self.contents = parts.contents
        length = context_length(config.model)
        self.flops = partial(flops.training, architecture, text_encoders=config.train.text_encoders, context=length)
        self.own_samples = config.data.per_batch_size * config.optim.gradient_accumulation_steps  # of a step
        self.samples = self.own_samples * self.world.batch[1]  # of all devices
        self.watch = Stopwatch()
        self.compilations = Compilations(self.watch)
        self.sizes = len(batches.sizes)
        self.seen: set[tuple[int, ...]] = set()  # shapes of the latents the step is compiled for
        self.done, self.saved, self.saving = 0, None, 0.0  # steps taken, the last one saved, seconds of saving
        if folder.resumed:
            with timed("state"):
                progress = state.restore(folder, self.contents)
            if progress.seed != config.train.seed:
                raise SuiteError(f"the run has seed {progress.seed}: resume it with --seed {progress.seed}")
            self.done = self.saved = progress.step
            log.info("resuming after step %d", self.done)
        steps = max(config.train.max_train_steps - self.done, 1)
        self.feed = feed(config.launch, batches, steps * config.optim.gradient_accumulation_steps)
        self.interval = config.launch.sink_size if config.launch.data_sink else config.train.log_interval
        evaluation = None
        if held_out:
            evaluation = eval_loss.EvalLoss(parts.loss, held_out, config.diffusion, eval_loss.grid(config))
        lend = parts.averaged if config.validation.ema else nullcontext
        self.validation = Validation(
            config, folder, self.done, evaluation, draw, self.compilations, self.world.first, lend
        )

    def go(self) -> None:
        """Train to the end, or to an interruption; either way the last step is saved.

        Raises:
            SuiteError: a step was not finite, the data failed, the disk is full; says what to go on from.
        """
        total = self.config.train.max_train_steps
        if self.done >= total:
            log.info("nothing to do: step %d of %d is done", self.done, total)
            return
        try:
            with (
                self.logged() as logged,
                self.progress(total) as self.bar,
                logging_redirect_tqdm(),
                Interruption(self.world.peers.request_end) as self.interruption,
            ):
                self.recorder = Recorder(logged, self.watch, self.config.train.peak_tflops)
                if not self.done:
                    logged.show(0, metrics.tagged(self.validation.look(0, logged.show)))  # a line belongs to a step
                while self.done < total and self.may_go_on():
                    self.one_step()
                    if checkpoint_due(self.config.train, self.done, self.samples):
                        self.save()
                if self.done and self.saved != self.done:
                    self.save()
            if self.world.first:
                plots.plot_run(self.folder)
        except OSError as error:
            reason, remedy = os_error_reason(error)
            raise SuiteError("; ".join(filter(None, (reason, remedy, self.how_to_go_on())))) from error
        log.info("time: %s", self.watch.split())
        if self.done < total:
            log.info("interrupted after step %d of %d: %s", self.done, total, self.how_to_go_on())
        else:
            log.info("done: %s", self.folder.weights(self.done))

    def logged(self) -> metrics.Metrics | metrics.Unwritten:
        if not self.world.first:
            return metrics.Unwritten()
        return metrics.Metrics(self.folder.metrics, self.folder.path / "tensorboard", self.done)

    def progress(self, total: int) -> tqdm:
        hidden = not self.world.first
        return tqdm(total=total, initial=self.done, unit="step", dynamic_ncols=True, smoothing=0.1, disable=hidden)

    def may_go_on(self) -> bool:
        """Whether to take another step. When any process is asked to end, all of them do so after the same one."""
        if self.world.size == 1:
            return not self.interruption.requested
        return self.world.peers.may_take(self.done + 1)

    def how_to_go_on(self) -> str:
        if self.saved is None:
            return "nothing was saved yet, so run the same command again"
        return f"step {self.saved} is saved, go on with --resume latest"

    def one_step(self) -> None:
        step, optim, train = self.done + 1, self.config.optim, self.config.train
        peak = optim.learning_rate * (self.samples if optim.scale_lr else 1)
        lr = learning_rate(
            optim.lr_scheduler,
            self.done,
            peak,
            optim.lr_warmup_steps,
            train.max_train_steps,
            optim.lr_end,
            optim.lr_power,
        )
        with self.watch("data") as waited:
            parts = self.read()
            compiled = self.compilations.book()  # autoencoder and text encoders
        shape = parts[0][1].shape  # of the latents' noise
        first = shape not in self.seen
        self.seen.add(shape)
        if first and self.recorder.waiting:
            self.fetch()  # the steps before do not share the time of compiling
        with self.watch("step"):
            self.world.peers.begins(step)
            with self.compiling(shape) if first else nullcontext():
                outputs = self.step.take(parts, Tensor(np.float32(lr), ms.float32))
            compiled += self.compilations.book()
        known = {"lr": lr, "data_seconds": round(waited(), 4)}
        if compiled:
            known["compile_seconds"] = round(sum(graph.seconds for graph in compiled), 2)
            made = "found in the compile cache" if all(graph.from_cache for graph in compiled) else "compiled"
            log.info("%s in %.1f s", made, known["compile_seconds"])
        if self.saving:
            known["save_seconds"], self.saving = round(self.saving, 4), 0.0
        self.recorder.add(Taken(step, outputs, self.samples, self.own_samples * self.flops(*shape[2:]), known))
        self.done = step
        self.bar.update()
        look = self.validation.due(step)
        if look:
            self.recorder.wait()
            with self.world.peers.busy():
                known |= self.validation.look(step, self.recorder.metrics.show)
        if step % self.interval == 0 or step == train.max_train_steps or compiled or look:
            self.fetch()

    def read(self) -> list[tuple[Tensor, ...]]:
        """The batches of the next step; if they cannot be had, the steps before are saved."""
        try:
            return [next(self.feed) for _ in range(self.config.optim.gradient_accumulation_steps)]
        except (SuiteError, OSError) as error:
            if self.done and self.saved != self.done and self.world.size == 1:
                self.save()  # of several processes the others do not know of it
            if isinstance(error, OSError):
                raise
            raise SuiteError(f"{error}; {self.how_to_go_on()}") from error

    def compiling(self, shape: tuple[int, ...]) -> AbstractContextManager:
        """Around the first step of a picture size; a signal ends it at once if all steps before are saved."""
        if ms.get_context("mode") != ms.GRAPH_MODE:
            return nullcontext()
        height, width = (8 * side for side in shape[2:])
        self.bar.set_postfix_str("compiling")
        log.info("compiling the step for %dx%d pictures, %d of %d", width, height, len(self.seen), self.sizes)
        if (self.done and self.saved != self.done) or self.world.size > 1:
            return nullcontext()
        return self.interruption.nothing_to_lose(f"ended while compiling; {self.how_to_go_on()}")

    def fetch(self) -> None:
        """Log the steps taken since the last time."""
        line, bad = self.recorder.fetch()
        self.world.peers.has_done()
        if bad is not None:
            self.stop_at_nonfinite(bad)
        self.bar.set_postfix_str(f"loss {line['loss']:.4f}, {line['images_per_second']:.1f} images/s")

    def stop_at_nonfinite(self, bad: NotFinite) -> None:
        """End the run; the step has changed no weight."""
        if self.saved != self.done:
            self.write()
        weights = self.parts.optimizer.taken
        names = bad.outputs.not_finite(weights)
        where = f", {len(names)} of {len(weights)} gradients not finite, the first that of {names[0]}" if names else ""
        raise SuiteError(
            f"step {bad.step}: loss {bad.numbers.loss}, gradient norm {bad.numbers.grad_norm}{where}; it changed "
            f"nothing: look at its pictures, or lower --learning_rate; {self.how_to_go_on()}"
        )

    def save(self) -> None:
        """Log and save all steps taken; in this order, so that a state never is ahead of its metrics."""
        if self.recorder.waiting:
            self.fetch()
        self.write()

    def write(self) -> None:
        with self.watch("save") as spent, self.world.peers.busy():
            progress = state.Progress(self.done, self.feed.cursor, self.config.train.seed)
            state.save(self.folder, progress, self.contents, self.world)
            if self.world.first:
                self.folder.keep_newest(self.config.train.max_num_ckpt, self.done)
        self.saved, self.saving = self.done, self.saving + spent()
        log.info("step %d saved in %.1f s", self.done, spent())


def checkpoint_due(train: TrainConfig, step: int, samples: int) -> bool:
    """Whether to save after ``step``, of ``samples`` each: at a multiple of steps, or past a multiple of samples."""
    every = train.checkpoint_every
    passed = every is not None and step * samples // every > (step - 1) * samples // every
    return passed or step % train.save_ckpt_interval == 0
