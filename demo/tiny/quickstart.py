"""The whole job on the tiny SDXL: convert, sample, draw a fine-tuning set, cache, train, merge, sample again, judge.

    bash scripts/quickstart.sh      # sets up .venv and runs this file

Every phase is one public command, printed before it runs: the same commands, with your weights and your folder, are
the full-size job. A phase that is done is not run again unless its command, its inputs or the code have changed, so
after an interruption the same command goes on where it was.
"""

import fcntl
import hashlib
import json
import os
import pty
import select
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from demo.tiny import world
from gm.config import load
from gm.config.flags import Parser
from gm.errors import SuiteError, UsageError, run_door
from gm.files import write_json, write_text

ROOT = Path(__file__).resolve().parents[2]
BASE = "demo/tiny/tiny_sdxl.safetensors"
TRAINING, INFERENCE = "configs/training/tiny_sdxl.yaml", "configs/inference/tiny_sdxl.yaml"
CODE = ("gm", "tools", "configs", "train.py", "demo/sampling_without_streamlit.py")  # every phase depends on these
JUDGE = ("world.py", "judge.py", "report.py")
FIRST_SEED = 100
SECONDS_TO_STOP = 60  # a training step, and saving


@dataclass(frozen=True)
class Phase:
    """One command (without the Python that runs it), what it reads and what it leaves behind."""

    name: str
    title: str
    command: tuple[str, ...]
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]


def shown(path: Path) -> str:
    """The path as a user would type it: relative to the repository, where the commands run."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def plan(out: Path) -> list[Phase]:
    """The phases of the job, in order."""
    base, tuned, prompts = out / "tiny_sdxl.ckpt", out / "tiny_sdxl_finetuned.ckpt", out / "prompts.txt"
    dataset, cache, run = out / "dataset", out / "cache", out / "finetune"
    steps = load(["--config", str(ROOT / TRAINING), "--data_path", str(dataset)]).train.max_train_steps
    unet, metrics = run / "weights" / f"unet_{steps}.ckpt", run / "metrics.jsonl"

    def sample(weight: Path, pictures: Path) -> tuple[str, ...]:
        words = ["demo/sampling_without_streamlit.py", "--config", INFERENCE, "--weight", shown(weight)]
        return (*words, "--prompt", shown(prompts), "--save_path", shown(pictures))

    recipe = ("train.py", "--config", TRAINING, "--weight", shown(base), "--data_path", shown(dataset))
    cached = ("--cache_latent", "True", "--cache_text_embedding", "True", "--cache_path", shown(cache))
    convert = ("tools/model_conversion/convert_weight.py", "--task", "st_to_ms")
    merge = ("tools/weight_merge/merge_weight.py", "--base_weight", shown(base), "--additional_weights", shown(unet))
    return [
        Phase(
            "convert",
            "the shipped weights become a MindSpore checkpoint",
            (*convert, "--weight_safetensors", BASE, "--weight_ms", shown(base)),
            (ROOT / BASE,),
            (base,),
        ),
        Phase(
            "before",
            "what the base model makes of the prompts",
            sample(base, out / "before"),
            (base, prompts),
            (out / "before",),
        ),
        Phase(
            "draw",
            f"a folder of pictures and captions that teaches a new shape ({world.NEW_SHAPE}) and a new colour "
            f"({world.NEW_COLOUR})",
            ("-m", "demo.tiny.world", shown(dataset)),
            (ROOT / "demo" / "tiny" / "world.py",),
            (dataset,),
        ),
        Phase(
            "cache",
            "the autoencoder and the text encoders run once over the folder",
            (*recipe, "--task", "cache", *cached),
            (base, dataset),
            (cache,),
        ),
        Phase(
            "train",
            "fine-tuning from the cache, as one compiled graph",
            (*recipe, *cached, "--save_path", shown(out), "--run_name", run.name),
            (base, dataset, cache),
            (unet, metrics),
        ),
        Phase(
            "merge",
            "the trained UNet takes its place in the whole model",
            (*merge, "--save_path", shown(tuned)),
            (base, unet),
            (tuned,),
        ),
        Phase(
            "after",
            "the same prompts and seeds again",
            sample(tuned, out / "after"),
            (tuned, prompts),
            (out / "after",),
        ),
        Phase(
            "judge",
            "colour and shape of every picture, counted",
            ("-m", "demo.tiny.report", shown(out)),
            (out / "before", out / "after", metrics, *(ROOT / "demo" / "tiny" / name for name in JUDGE)),
            (out / "verdicts.json", out / "grid.png", out / "loss.png"),
        ),
    ]


def prompt_lines() -> str:
    """The prompts file: one prompt a line, each with a seed of its own (``--d``), so that no seed decides for all."""
    taught, kept = world.evaluation_prompts()
    return "".join(f"{prompt.text} --d {FIRST_SEED + index}\n" for index, prompt in enumerate((*taught, *kept)))


def digest(paths: Iterable[Path]) -> str:
    """A hash of the names and bytes of files and folders; a missing one counts as missing."""
    found = hashlib.sha256()
    for top in paths:
        files = sorted(path for path in top.rglob("*") if path.is_file()) if top.is_dir() else [top]
        for path in files:
            if "__pycache__" in path.parts or path.name.startswith("."):  # notes that a scan leaves
                continue
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"
            found.update(f"{path.relative_to(top.parent)} {content}\n".encode())
    return found.hexdigest()


class Records:
    """One small file a phase: ``key`` (what it depends on) and, once done, ``outputs`` (their hash) and ``seconds``."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.code = f"{version('mindspore')} {digest(ROOT / name for name in CODE)}"

    def key(self, phase: Phase) -> str:
        return hashlib.sha256(f"{phase.command} {digest(phase.inputs)} {self.code}".encode()).hexdigest()

    def read(self, phase: Phase) -> dict:
        try:
            return json.loads((self.folder / f"{phase.name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def write(self, phase: Phase, **record: object) -> None:
        write_json(self.folder / f"{phase.name}.json", record)

    def done(self, phase: Phase) -> bool:
        record = self.read(phase)
        return (
            "seconds" in record
            and record["key"] == self.key(phase)
            and all(path.exists() for path in phase.outputs)
            and record["outputs"] == digest(phase.outputs)
        )


def remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def open_channel() -> tuple[int, int]:
    """(read end, write end) for a command's output: a terminal if we have one, so that it draws its progress bar."""
    if not sys.stdout.isatty():
        return os.pipe()
    reader, writer = pty.openpty()
    size = fcntl.ioctl(sys.stdout, termios.TIOCGWINSZ, b"\0" * 8)
    fcntl.ioctl(writer, termios.TIOCSWINSZ, size)
    return reader, writer


def read_some(channel: int) -> bytes:
    try:
        return os.read(channel, 1 << 16)
    except OSError:  # how Linux says that the other side of a terminal is closed
        return b""


def execute(command: list[str], log: Path) -> int:
    """Run a command in the repository; its output goes to our stdout and to the log. Returns its exit code.

    An interruption is passed on; what the command still has to say while it ends goes to the log alone.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    reader, writer = open_channel()
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=writer,
        start_new_session=True,
    )
    os.close(writer)
    with log.open("wb", buffering=0) as file:
        try:
            while some := read_some(reader):
                file.write(some)
                sys.stdout.buffer.write(some)
                sys.stdout.flush()
            return process.wait()
        except BaseException:
            print(flush=True)  # away from a progress bar
            os.killpg(process.pid, signal.SIGINT)
            deadline = time.monotonic() + SECONDS_TO_STOP
            while time.monotonic() < deadline:
                if select.select([reader], [], [], 1.0)[0]:
                    some = read_some(reader)
                    if not some:
                        break
                    file.write(some)
            raise
        finally:
            if process.poll() is None and not wait_a_little(process):
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            os.close(reader)


def wait_a_little(process: subprocess.Popen) -> bool:
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        return False
    return True


def prepare(phase: Phase, key: str, out: Path, records: Records) -> list[str]:
    """Clear what a phase must not find, and give its command: a training that was interrupted is resumed."""
    record, run = records.read(phase), out / "finetune"
    interrupted = record.get("key") == key and "seconds" not in record
    if interrupted and phase.name == "train" and (run / "latest").exists():
        return [*phase.command, "--resume", "latest"]
    if phase.name == "train":
        remove([run])
    if not interrupted:
        remove(phase.outputs)
        records.write(phase, key=key)
    return list(phase.command)


def perform(phase: Phase, out: Path, records: Records) -> None:
    """Run one phase and record it.

    Raises:
        SuiteError: the command failed, or left out what it should have written.
    """
    key = records.key(phase)
    command = prepare(phase, key, out, records)
    print(f"$ python {shlex.join(command)}", flush=True)
    log = out / "logs" / f"{phase.name}.log"
    started = time.monotonic()
    code = execute(command, log)
    lacking = [path for path in phase.outputs if not path.exists()]
    if code or lacking:
        reason = f"exit code {code}" if code else f"no {shown(lacking[0])}"
        raise SuiteError(
            f"phase {phase.name} failed ({reason}): python {shlex.join(command)} (log: {shown(log)}); "
            "mend it and run the same command again"
        )
    seconds = round(time.monotonic() - started, 1)
    records.write(phase, key=key, outputs=digest(phase.outputs), seconds=seconds)
    print(f"  {phase.name}: {seconds:.1f} s\n", flush=True)


def summarise(phases: list[Phase], out: Path, records: Records) -> dict:
    """Write summary.json: what the judge counted, and how long each phase took (seconds)."""
    summary = json.loads((out / "verdicts.json").read_text(encoding="utf-8"))
    seconds = {phase.name: records.read(phase)["seconds"] for phase in phases}
    summary["seconds"] = {**seconds, "total": round(sum(seconds.values()), 1)}
    write_json(out / "summary.json", summary)
    return summary


def tell(summary: dict, out: Path) -> None:
    """What came out, and where it lies."""
    taught = [item for item in summary["prompts"] if item["part"] == "taught"]
    kept = [item for item in summary["prompts"] if item["part"] == "kept"]
    held_out = [item for item in taught if item["held_out"]]

    def right(items: list[dict], when: str) -> str:
        return f"{sum(item[when]['matched'] for item in items)} of {len(items)}"

    print(f"taught by fine-tuning:     {right(taught, 'before')} prompts right before, {right(taught, 'after')} after")
    print(f"  never shown together:    {right(held_out, 'before')} before, {right(held_out, 'after')} after")
    print(f"known before, and kept:    {right(kept, 'before')} before, {right(kept, 'after')} after")
    minutes, seconds = divmod(round(summary["seconds"]["total"]), 60)
    print(f"all phases: {minutes} min {seconds} s")
    for name, what in [
        ("grid.png", "the pictures, before and after"),
        ("loss.png", "the loss curve"),
        ("summary.json", "the figures"),
        ("finetune", "the run: configuration, log, metrics, weights"),
    ]:
        print(f"  {shown(out / name):36} {what}")


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "quickstart", help="folder of everything it makes")
    parser.add_argument("--fresh", action="store_true", help="do every phase again")
    options = parser.parse(arguments)
    out = options.out.resolve()
    if out in (ROOT, *ROOT.parents):
        raise UsageError(f"--out {options.out} holds the repository: name a folder of its own")
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SuiteError(f"another quickstart is at work in {shown(out)}: wait for it, or use --out") from None
        if options.fresh:
            remove([out / "phases"])
        write_text(out / "prompts.txt", prompt_lines())
        records, phases = Records(out / "phases"), plan(out)
        for number, phase in enumerate(phases, 1):
            print(f"[{number}/{len(phases)}] {phase.name}: {phase.title}", flush=True)
            if records.done(phase):
                print("  done before\n", flush=True)
            else:
                perform(phase, out, records)
        tell(summarise(phases, out, records), out)


if __name__ == "__main__":
    run_door(main)
