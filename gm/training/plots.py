"""The loss curve as a picture."""

from pathlib import Path

import numpy as np

from gm.files import replacing

WINDOW = 0.05  # of the run: width of the running mean


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """The mean over up to ``width`` values around each: (N,) -> (N,), no lag and no made-up ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    centre = np.arange(len(values))
    low, high = np.maximum(centre - width // 2, 0), np.minimum(centre + width // 2 + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def plot_loss(records: list[dict], path: str | Path) -> None:
    """Loss over steps, each step's and the running mean, from the records of ``metrics.jsonl``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = np.array([record["step"] for record in records])
    losses = np.array([record["loss"] for record in records], float)
    figure = Figure(figsize=(7, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="#9db4d6", linewidth=0.8, label="each step")
    width = max(1, round(WINDOW * len(losses)))
    axes.plot(steps, smoothed(losses, width), color="#1f4e9c", linewidth=1.8, label=f"mean of {width} steps")
    axes.set(xlabel="step", ylabel="loss")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with replacing(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})
