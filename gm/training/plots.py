"""What a run did, as pictures."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gm.files import replacing
from gm.training.metrics import read
from gm.training.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WINDOW = 0.05  # of the run: width of the running mean
STEP, MEAN, EVAL, RATE = "#9db4d6", "#1f4e9c", "#c8553d", "#5b7f5b"
LABELLED = 6  # evaluations named in the legend


def plot_run(folder: RunFolder) -> None:
    """Draw what the run has logged into its ``plots``."""
    records, evaluations = read(folder.metrics), read(folder.evaluations)
    if records:
        plot_loss(records, folder.path / "plots" / "loss.png", evaluations)
    if evaluations:
        plot_eval_loss(evaluations, folder.path / "plots" / "eval_loss.png")


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """The mean over up to ``width`` values around each: (N,) -> (N,), no lag and no made-up ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    centre = np.arange(len(values))
    low, high = np.maximum(centre - width // 2, 0), np.minimum(centre + width // 2 + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def plot_loss(records: list[dict], path: str | Path, evaluations: list[dict] = ()) -> None:
    """Loss over steps, each step's and the running mean, and below it the learning rate, from ``metrics.jsonl``.

    ``evaluations`` are the records of ``eval_loss.jsonl``.
    """
    rates = [(record["step"], record["lr"]) for record in records if "lr" in record]
    finite = [record for record in records if record["loss"] is not None]
    steps = np.array([record["step"] for record in finite])
    losses = np.array([record["loss"] for record in finite], float)
    figure = _figure(4.4 if rates else 3.6)
    if rates:
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        below.plot(*zip(*rates), color=RATE, linewidth=1.4)
        below.set(ylabel="learning rate", xlabel="step")
        below.set_ylim(bottom=0)
        below.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    else:
        axes = below = figure.add_subplot()
        axes.set(xlabel="step")
    axes.plot(steps, losses, color=STEP, linewidth=0.8, label="each step")
    width = max(1, round(WINDOW * len(losses)))
    axes.plot(steps, smoothed(losses, width), color=MEAN, linewidth=1.8, label=f"mean of {width} steps")
    if evaluations:
        points = [(record["step"], record["eval_loss"]) for record in evaluations]
        axes.plot(*zip(*points), color=EVAL, linewidth=1.4, marker="o", markersize=4, label="evaluation")
    axes.set(ylabel="loss")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    _tidy(axes, below)
    _save(figure, path)


def plot_eval_loss(evaluations: list[dict], path: str | Path, labels: list[str] | None = None) -> None:
    """The loss at each timestep, one line for each evaluation.

    Of one run the later is the darker; ``labels`` name evaluations of different weights, which have colours of their
    own.
    """
    from matplotlib import colormaps

    figure = _figure(3.6)
    axes = figure.add_subplot()
    if labels:
        shades = [colormaps["tab10"](index % 10) for index in range(len(evaluations))]
        named = set(range(len(evaluations)))
    else:
        labels = [f"step {record['step']}" for record in evaluations]
        shades = colormaps["Blues"](np.linspace(0.35, 1.0, len(evaluations)))
        named = {round(index) for index in np.linspace(0, len(evaluations) - 1, min(LABELLED, len(evaluations)))}
    for index, (record, shade) in enumerate(zip(evaluations, shades)):
        label = f"{labels[index]}: mean {record['eval_loss']:.4f}" if index in named else None
        axes.plot(record["timesteps"], record["losses"], color=shade, linewidth=1.4, label=label)
    axes.set(xlabel="timestep", ylabel="evaluation loss")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    _tidy(axes)
    _save(figure, path)


def _figure(height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _tidy(*all_axes) -> None:
    for axes in all_axes:
        axes.margins(x=0.01)
        axes.spines[["top", "right"]].set_visible(False)


def _save(figure: "Figure", path: str | Path) -> None:
    with replacing(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})
