"""What a whole training step of this suite spends its time on, kernel by kernel, by MindSpore's profiler.

    python tools/benchmark/kernels.py --model tiny
    python tools/benchmark/kernels.py --model slim --steps 3

The steps are those of ``training_step.py`` (``--only suite``). Printed are, for each type of operator, how many a step
has, milliseconds of a step (for each operator the median of the steps) and microseconds of the median operator.
"""

import re
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from contestants import MODELS, suite

from gm.config.flags import Parser, positive
from gm.environment import take_allocator
from gm.errors import run_door


def durations(folder: Path) -> dict[str, list[float]]:
    """Milliseconds of each operator of the steps that were profiled into ``folder``, a list for each type.

    MindSpore writes a line an operator: its path in the graph, which ends in ``Type-opN``, its type, then of each run
    start, duration in milliseconds and thread, with commas between.
    """
    found = defaultdict(list)
    (table,) = folder.rglob("cpu_op_execute_timestamp_*.txt")
    for line in table.read_text().splitlines():
        name, _, runs = line.split(";")
        kind = re.sub(r"-op\d+$", "", name.rsplit("/", 1)[-1])
        found[kind].append(statistics.median(float(run.split(",")[1]) for run in runs.split()))
    return found


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--model", choices=MODELS, default="tiny")
    parser.add_argument("--steps", type=positive, default=5, help="steps to take the medians of")
    parser.add_argument("--top", type=positive, default=20, help="lines of the table")
    options = parser.parse(arguments)
    take_allocator()
    version, _, step = suite(MODELS[options.model])

    from mindspore import profiler
    from mindspore.profiler import ProfilerActivity, ProfilerLevel, schedule, tensorboard_trace_handler

    for _ in range(3):  # the first compiles
        step()
    with tempfile.TemporaryDirectory() as folder:
        with profiler.profile(
            activities=[ProfilerActivity.CPU],
            schedule=schedule(wait=0, warmup=0, active=options.steps, repeat=1, skip_first=0),
            on_trace_ready=tensorboard_trace_handler(folder),
            experimental_config=profiler._ExperimentalConfig(profiler_level=ProfilerLevel.Level1),
        ) as profile:
            for _ in range(options.steps):
                step()
                profile.step()
        found = durations(Path(folder))
    total, count = sum(map(sum, found.values())), sum(map(len, found.values()))
    print(f"{version}, {options.model}: {count} operators a step, {total:.1f} ms")
    for kind, times in sorted(found.items(), key=lambda item: -sum(item[1]))[: options.top]:
        print(f"  {kind:24} {len(times):6} {sum(times):9.1f} ms {1e3 * statistics.median(times):9.1f} us", flush=True)


if __name__ == "__main__":
    run_door(main)
