"""The running mean neither lags nor invents, and the plot is a picture."""

import numpy as np
from PIL import Image

from gm.training.plots import plot_loss, smoothed


def test_running_mean():
    values = np.arange(10.0)
    np.testing.assert_allclose(smoothed(values, 5)[2:-2], values[2:-2])
    np.testing.assert_allclose(smoothed(values, 1), values)
    np.testing.assert_allclose(smoothed(np.full(7, 3.0), 100), 3.0)


def test_plot_is_the_same_bytes_every_time(tmp_path):
    records = [{"step": step, "loss": 1.0 / step} for step in range(1, 50)]
    for name in ("a.png", "b.png"):
        plot_loss(records, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (840, 432)
