"""Steps are logged together and the device is waited for only then."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from gm.training.metrics import Metrics
from gm.training.recorder import Recorder, Taken
from gm.training.step import Outputs
from gm.training.timing import Stopwatch


class Scalar:
    """A tensor on a device that counts how often it is waited for."""

    fetched = 0

    def __init__(self, value: float):
        self.value = value

    def asnumpy(self) -> np.ndarray:
        Scalar.fetched += 1
        return np.array(self.value, np.float32)


@pytest.fixture
def log(tmp_path):
    watch = Stopwatch()
    with Metrics(tmp_path / "metrics.jsonl", tmp_path / "board") as metrics:
        yield Recorder(metrics, watch, peak_tflops=2.0), watch, tmp_path / "metrics.jsonl"


def taken(step: int, loss: float = 0.5, norm: float = 1.0, scaling: tuple[float, ...] = ()) -> Taken:
    """``scaling``: loss scale and skipped steps, with float16."""
    outputs = Outputs(*map(Scalar, (loss, 0.25, norm, [norm**2, 0.0], *scaling)))
    return Taken(step, outputs, samples=4, flops=3e12, known={"lr": 0.1 * step})


def test_steps_share_the_time_since_the_last_fetch(log):
    recorder, watch, path = log
    Scalar.fetched = 0
    for step in (1, 2, 3):
        watch.book("step", 2.0)
        watch.book("data", 1.0)
        watch.book("save", 50.0)
        recorder.add(taken(step))
    assert Scalar.fetched == 0
    assert path.read_text() == ""
    recorder.fetch()
    assert not recorder.waiting
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3]
    for record in records:
        assert record["seconds"] == pytest.approx(3.0, abs=0.01)
        assert record["images_per_second"] == pytest.approx(4 / 3, rel=0.01)
        assert record["tflops"] == pytest.approx(1.0, rel=0.01)
        assert record["mfu"] == pytest.approx(0.5, rel=0.01)
        assert record["lr"] == pytest.approx(0.1 * record["step"])
    watch.book("step", 6.0)
    watch.book("compile", 70.0)  # of which 50 were for something else
    compiled = taken(4)
    compiled.known["compile_seconds"] = 20.0
    recorder.add(compiled)
    line, bad = recorder.fetch()
    assert (line["seconds"], bad) == (pytest.approx(26.0, abs=0.01), None)


def test_the_first_step_that_is_not_finite_is_told_and_all_are_logged(log):
    recorder, watch, path = log
    for step, loss in enumerate((0.5, float("nan"), float("inf")), start=1):
        watch.book("step", 1.0)
        recorder.add(taken(step, loss))
    _, bad = recorder.fetch()
    assert bad.step == 2
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [0.5, None, None]
    assert bad.outputs.not_finite([SimpleNamespace(name="a"), SimpleNamespace(name="b")]) == []


def test_an_overflow_is_skipped_until_no_smaller_loss_scale_is_left(log):
    recorder, watch, path = log
    for step, (norm, scale) in enumerate([(float("inf"), 2.0), (3.0, 1.0), (float("nan"), 1.0)], start=1):
        watch.book("step", 1.0)
        recorder.add(taken(step, norm=norm, scaling=(scale, 1.0)))
    _, bad = recorder.fetch()
    assert bad.step == 3
    assert bad.outputs.not_finite([SimpleNamespace(name="a"), SimpleNamespace(name="b")]) == ["a"]
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["grad_norm"] for record in records] == [None, 3.0, None]
    assert [(record["loss_scale"], record["skipped_steps"]) for record in records] == [(2.0, 1), (1.0, 1), (1.0, 1)]
