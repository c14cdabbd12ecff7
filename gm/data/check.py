"""What training would make of a folder of pictures, told before anything is trained: ``--task check``."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from gm.config import Config
from gm.config.sections.data import DataConfig
from gm.data import datasets
from gm.data.geometry import Geometry
from gm.data.order import datasets_of, epoch_batches
from gm.data.sample import Problem, Sample
from gm.data.tokens import Tokenizers
from gm.errors import SuiteError
from gm.files import replacing, write_text

NAMED = 10  # of each kind of remark; the report file has all
BAR = 40  # characters of the longest bar
ASPECTS = (0.4, 0.55, 0.7, 0.85, 0.95, 1.05, 1.2, 1.45, 1.8, 2.5)  # edges of the table, width / height
LARGEST_ENLARGEMENT = 1.25  # pictures enlarged by more than this look soft, and the model learns that


@dataclass(frozen=True)
class Finding:
    """A line of the report with what belongs to it; ``examples`` are cut short on the screen, a ``table`` is not."""

    line: str
    examples: Sequence[str] = ()
    table: Sequence[str] = ()

    def text(self, most: int | None = None) -> str:
        shown = list(self.examples[:most])
        more = len(self.examples) - len(shown)
        rows = [*self.table, *shown, *([f"and {more} more"] if more else [])]
        return "\n  ".join([self.line, *rows])


def check(config: Config) -> int:
    """Read the headers and captions of the data and print what is found.

    Writes ``report.txt`` (all of it), ``bad_samples.csv`` and ``aspects.png`` into <train.save_path>/check. Returns the
    exit code: 1 if training with this configuration would refuse the data. Raises SuiteError without any pictures.
    """
    data, findings = config.data, []
    lacking = datasets.lacking_class_pictures(data)
    if lacking:
        findings.append(Finding(f"pictures of the class: the model draws {lacking} of {data.num_class_images} first"))
        if lacking == data.num_class_images:
            data = replace(data, with_prior_preservation=False)
    samples, problems = datasets.inspect(data)
    target = Path(config.train.save_path) / "check"
    findings = [*_datasets(data, samples), *findings, _problems(problems)]
    if samples:
        findings += [*_pictures(samples), *_training(config, samples), *_captions(config, samples)]
        _plot(target / "aspects.png", samples)
    write_text(target / "report.txt", "".join(finding.text() + "\n" for finding in findings))
    datasets.write_report(target / datasets.REPORT, problems)
    print("\n".join(finding.text(NAMED) for finding in findings))
    print(f"all of it: {target / 'report.txt'}" + (f", aspect ratios: {target / 'aspects.png'}" if samples else ""))
    try:
        datasets.judge(data, problems, len(samples), target / datasets.REPORT)
    except SuiteError as error:
        print(f"training would refuse this: {error}", file=sys.stderr)
        return 1
    return 0


def _datasets(data: DataConfig, samples: list[Sample]) -> Iterator[Finding]:
    entries = datasets.data_sets(data)
    yield Finding(f"{', '.join(entry.path for entry in entries)}: {len(samples)} usable pictures")
    if len(entries) == 1:
        return
    counts = Counter(sample.dataset for sample in samples)
    _, repeats = datasets_of(samples)
    rows = []
    for number, (name, entry) in enumerate(zip(datasets.names(entries), entries)):
        times = repeats[number] if number < len(repeats) else 0
        weight = f", loss counts {entry.loss_weight:g} times" if entry.loss_weight != 1 else ""
        rows.append(f"{name}: {counts[number]} pictures, {times:.4g} times an epoch{weight}")
    yield Finding(f"data sets: {len(entries)}", table=rows)


def _problems(problems: list[Problem]) -> Finding:
    kinds = Counter(problem.reason.partition(":")[0] for problem in problems)
    table = [f"{count:>8} {kind}" for kind, count in kinds.most_common()] if len(kinds) > 1 else []
    return Finding(f"problems: {len(problems)}", [f"{problem.id}: {problem.reason}" for problem in problems], table)


def _pictures(samples: list[Sample]) -> Iterator[Finding]:
    heights, widths = np.array([sample.size for sample in samples]).T
    for name, sides in (("height", heights), ("width", widths)):
        yield Finding(f"{name}: {sides.min()} to {sides.max()} px, median {int(np.median(sides))}")
    between = [f"{low:g} to {high:g}" for low, high in pairwise(ASPECTS)]
    names = [f"below {ASPECTS[0]:g}", *between, f"above {ASPECTS[-1]:g}"]
    counts = np.bincount(np.searchsorted(ASPECTS, widths / heights, side="right"), minlength=len(names))
    yield Finding("aspect ratio, width / height:", table=_bars(zip(names, counts)))


def _training(config: Config, samples: list[Sample]) -> Iterator[Finding]:
    geometry = Geometry.of(config)
    sizes = [geometry.bucket(sample) for sample in samples]
    count_of = Counter(sizes)
    counts = [(f"{height}x{width}", count_of[height, width]) for height, width in sorted(count_of)]
    yield Finding(f"trained at, height x width ({len(counts)} to compile):", table=_bars(counts))
    batch = config.data.per_batch_size * config.optim.gradient_accumulation_steps
    order = (config.train.seed, 0, config.data.shuffle, config.data.drop_last)
    steps = epoch_batches(sizes, batch, *order, *datasets_of(samples))
    real, dropped = sum(step.real for step in steps), []
    filled = f", {len(steps) * batch - real} places filled up by pictures that do not count"
    if config.data.drop_last:
        kept = Counter(size for step in steps for size in [sizes[step.positions[0]]] * step.real)
        whole = epoch_batches(sizes, 1, *order, *datasets_of(samples))
        every = Counter(sizes[step.positions[0]] for step in whole)
        dropped = [f"{h}x{w}: {every[h, w] - kept[h, w]} of {every[h, w]}" for h, w in sorted(every - kept)]
        filled = f", {len(whole) - real} pictures left out of it (--drop_last)"
    yield Finding(f"steps per epoch: {len(steps)} of {batch} pictures{filled}", table=dropped)
    cut, enlarged = [], []
    for sample, (height, width) in zip(samples, sizes):
        ratio = sample.size[0] * width / (sample.size[1] * height)
        cut.append(1 - min(ratio, 1 / ratio))
        enlarged.append((max(height / sample.size[0], width / sample.size[1]), sample.id))
    yield Finding(f"cut off by cropping: {np.mean(cut):.1%} of a picture on average, {max(cut):.1%} at most")
    small = [f"{id}: {scale:.2f} times" for scale, id in sorted(enlarged, reverse=True) if scale > LARGEST_ENLARGEMENT]
    yield Finding(f"enlarged more than {LARGEST_ENLARGEMENT:g} times: {len(small)}", small)


def _captions(config: Config, samples: list[Sample]) -> Iterator[Finding]:
    captions = [(sample.id, caption) for sample in samples for caption in sample.captions]
    different = list(dict.fromkeys(caption for _, caption in captions))
    empty = [id for id, caption in captions if not caption]
    yield Finding(f"captions: {len(captions)}, {len(different)} different, {len(empty)} empty", empty)
    try:
        tokenizers = Tokenizers.of(config.model)
    except SuiteError as error:
        yield Finding(f"captions were not measured: {error}")
        return
    beyond = dict(zip(different, tokenizers.cut_off(different)))
    cut = np.array([beyond[caption] for _, caption in captions])
    long = [f"{id}: {count} tokens beyond the end" for (id, _), count in zip(captions, cut) if count]
    yield Finding(
        f"captions over {tokenizers.length} tokens: {len(long)}, {cut.sum()} tokens are not seen in all", long
    )


def _bars(counted: Iterable[tuple[str, int]]) -> list[str]:
    rows = [(name, int(count)) for name, count in counted if count]
    largest = max(count for _, count in rows)
    return [f"{name:>12} {count:>8} {'#' * max(1, round(BAR * count / largest))}" for name, count in rows]


def _plot(path: Path, samples: list[Sample]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    ratios = np.array([sample.size[1] / sample.size[0] for sample in samples])
    octaves = np.log2(ratios)
    reach = max(1, np.ceil(np.abs(octaves).max()))  # symmetric: portrait and landscape compare at a glance
    axes.hist(octaves, bins=np.linspace(-reach, reach, 41))
    ticks = np.arange(-reach, reach + 1)
    axes.set_xticks(ticks, [f"{2.0**tick:g}" for tick in ticks])
    axes.set(xlabel="width / height", ylabel="pictures", title=f"{len(samples)} pictures")
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=120)
