"""Time whole training steps - forward, backward, clipping, AdamW, float32 - of this suite and of its peers.

    python tools/benchmark/training_step.py --model tiny
    python tools/benchmark/training_step.py --model slim --rounds 5 --steps 3
    python tools/benchmark/training_step.py --only suite --pythons A/bin/python B/bin/python
    python tools/benchmark/training_step.py --model slim --restart
    python tools/benchmark/training_step.py --model slim --only suite --without transformer_block allocator

Each contestant (``contestants.py``) runs in a process of its own, in every environment given where its packages are
installed. All but one are stopped (SIGSTOP) while that one takes its steps, turn after turn, so a machine whose speed
drifts is as fair to one as to the other. Printed are medians over the turns, seconds of the first step (compilation),
and the peak of resident memory, each with its ratio to diffusers (to the first row where diffusers is missing).
``--restart`` starts the suite twice with one compile cache and prints both first steps. ``--without`` adds the suite
without each of what stands in for plain operators on the CPU (``STAND_INS`` and ``KERNELS`` in
``gm/models/layers.py``), without all ``kernels``, or without the ``allocator`` it begins anew with.
"""

import argparse
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from contestants import CONTESTANTS, MODELS

import gm  # noqa: F401  (sets the environment that MindSpore reads)
from gm.config.flags import Parser, positive
from gm.environment import take_allocator
from gm.errors import SuiteError, UsageError, run_door

FIGURES = ("first_seconds", "step_seconds", "peak_gigabytes")


ALLOCATOR, ALL_KERNELS = OTHERS = ("allocator", "kernels")


def serve(contestant: str, model: str, compile_cache: str | None, without: str | None) -> None:
    """The measured process: take one step, say so, then as many as each line of standard input asks for."""
    if contestant == "suite" and without != ALLOCATOR:
        take_allocator()  # as train.py does
    if without not in (None, ALLOCATOR):
        leave_out(without)
    if compile_cache:
        from gm.compilation import keep_in

        keep_in(compile_cache)
    version, parameters, step = CONTESTANTS[contestant][0](MODELS[model])
    started = time.perf_counter()
    step()
    tell({"version": version, "parameters": parameters, "first_seconds": time.perf_counter() - started})
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            started = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - started)
        tell({"seconds": seconds, "peak_gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6})


def leave_out(layer: str) -> None:
    """Let no layer take this stand-in, or any kernel."""
    from gm.models import layers

    tables = (layers.STAND_INS, layers.KERNELS)
    known = [name for table in tables for name in table["CPU"]]
    if layer == ALL_KERNELS:
        layers.KERNELS = {}
    elif layer in known:
        for table in tables:
            table["CPU"] = tuple(name for name in table["CPU"] if name != layer)
    else:
        raise UsageError(f"--without {layer}: no such stand-in; there are {', '.join((*known, *OTHERS))}")


def tell(answer: dict) -> None:
    print("answer " + json.dumps(answer), flush=True)


@dataclass
class Process:
    """A contestant in an environment, stopped unless it is asked something."""

    contestant: str
    python: str
    model: str
    options: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    script: str = __file__

    def start(self) -> None:
        command = [self.python, self.script, "--serve", self.contestant, "--model", self.model, *self.options]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (lives as long as the process)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        answer = self._answer()
        self.name = f"{self.contestant}, {answer['version']}, {answer['parameters'] / 1e6:.1f} M parameters"
        self.figures["first_seconds"] = answer["first_seconds"]

    def take(self, steps: int, warm_up: int) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(f"{steps + warm_up}\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.seconds += answer["seconds"][warm_up:]
        self.figures["step_seconds"] = statistics.median(self.seconds)
        self.figures["peak_gigabytes"] = answer["peak_gigabytes"]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def _answer(self) -> dict:
        for line in self.process.stdout:
            if line.startswith("answer "):
                self.process.send_signal(signal.SIGSTOP)
                return json.loads(line.removeprefix("answer "))
        self.errors.seek(0)
        said = self.errors.read().strip().splitlines() or ["nothing"]
        self.end()
        raise SuiteError(f"{self.contestant} with {self.python} ended; it said last: {said[-1]}")


def installed(python: str, packages: tuple[str, ...]) -> bool:
    program = f"import importlib.util as u, sys; sys.exit(not all(u.find_spec(p) for p in {packages}))"
    return subprocess.run([python, "-c", program], capture_output=True).returncode == 0


def compare(pythons: list[str], only: list[str], without: list[str], model: str, steps: int, rounds: int) -> None:
    """Measure in turn and print medians and ratios."""
    contestants = [(contestant, None) for contestant in only] + [("suite", layer) for layer in without]
    running: list[Process] = []
    try:
        for contestant, layer in contestants:
            for python in pythons:
                if not installed(python, CONTESTANTS[contestant][1]):
                    print(f"{contestant}: not installed in {python}")
                    continue
                process = Process(contestant, python, model, ["--without", layer] if layer else [])
                try:
                    process.start()
                    process.name += f", without {layer}" if layer else ""
                    running.append(process)
                except SuiteError as error:
                    print(error)
        for _ in range(rounds):
            for process in running:
                process.take(steps, warm_up=1)
    finally:
        for process in running:
            process.end()
    print(f"{model}: medians of {rounds} turns of {steps} steps, {len(os.sched_getaffinity(0))} cores")
    base = next((p for p in running if p.contestant == "diffusers"), running[0] if running else None)
    for process in running:
        ratios = {figure: process.figures[figure] / base.figures[figure] for figure in FIGURES}
        cells = [f"{figure} {process.figures[figure]:.3f} ({ratios[figure]:.2f})" for figure in FIGURES]
        print(f"{process.name}: " + "  ".join(cells))


def restart(python: str, model: str) -> None:
    """First steps without and with what the first start has left in the compile cache."""
    with tempfile.TemporaryDirectory() as cache:
        seconds = []
        for _ in range(2):
            process = Process("suite", python, model, ["--compile_cache", cache])
            process.start()
            process.end()
            seconds.append(process.figures["first_seconds"])
    ratio = seconds[1] / seconds[0]
    print(f"{model}: first step {seconds[0]:.1f} s, of the second start {seconds[1]:.1f} s ({ratio:.2f})")


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--model", choices=MODELS, default="tiny")
    parser.add_argument("--steps", type=positive, default=10, help="steps of a turn, after one that does not count")
    parser.add_argument("--rounds", type=positive, default=3, help="turns of each")
    parser.add_argument("--pythons", nargs="+", default=[sys.executable], help="interpreters of the environments")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), metavar="CONTESTANT")
    parser.add_argument("--without", nargs="+", default=[], metavar="STAND_IN", help="measure the suite less this too")
    parser.add_argument("--restart", action="store_true", help="time a first and a second start with the compile cache")
    parser.add_argument("--serve", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--compile_cache", help=argparse.SUPPRESS)
    options = parser.parse(arguments)
    if options.serve:
        serve(options.serve, options.model, options.compile_cache, next(iter(options.without), None))
    elif options.restart:
        restart(options.pythons[0], options.model)
    else:
        compare(options.pythons, options.only, options.without, options.model, options.steps, options.rounds)


if __name__ == "__main__":
    run_door(main)
