"""The data sink: the same run, fed in another way and logged at other times."""

import inspect
import logging
import os
import signal

import mindspore as ms
import numpy as np
import pytest

from gm.config.sections.machine import LaunchConfig
from gm.errors import SuiteError, UsageError
from gm.training import sink
from gm.training.metrics import read
from gm.training.recorder import Recorder
from gm.training.run import Run
from tests.training.small_run import FakeBatches, configuration, start

STEPS = 10
NUMBERS = ("step", "loss", "raw_loss", "lr", "grad_norm")
DOCUMENTED = {"fn": inspect.Parameter.empty, "dataset": inspect.Parameter.empty, "sink_size": 1}
DOCUMENTED |= {"jit_config": None, "input_signature": None}


def stand_in(fn, dataset, sink_size=1, jit_config=None, input_signature=None):
    """What ``mindspore.data_sink`` documents: looks at the data first, reads ahead of the steps, gives one result a
    call, that of the last of ``sink_size`` batches."""
    assert (sink_size, jit_config, input_signature) == (1, None, None)
    assert dataset.get_dataset_size() > 0
    shapes = dataset.output_shapes()
    rows = dataset.create_tuple_iterator(num_epochs=1)
    ahead = [next(rows), next(rows)]
    assert [list(field.shape) for field in ahead[0]] == shapes

    def process():
        ahead.append(next(rows))
        for _ in range(sink_size):
            result = fn(*ahead.pop(0))
        return result

    return process


@pytest.fixture
def on_ascend(monkeypatch):
    """Feeds are those of Ascend, with the stand-in for what needs the device."""
    monkeypatch.setattr(ms, "data_sink", stand_in)
    real = sink.feed
    monkeypatch.setattr("gm.training.run.feed", lambda launch, *rest: real(launch, *rest, target="Ascend"))


def test_the_contract_is_that_of_the_installed_release():
    assert {name: p.default for name, p in inspect.signature(ms.data_sink).parameters.items()} == DOCUMENTED
    assert {name: p.default for name, p in inspect.signature(stand_in).parameters.items()} == DOCUMENTED


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """(folder, records of the metrics) of a run without sink."""
    from tests.training.conftest import SmallUNet, batch_of

    folder = tmp_path_factory.mktemp("sink") / "plain"
    ms.set_context(mode=ms.GRAPH_MODE)
    start(configuration(folder, STEPS, optim__gradient_accumulation_steps=2), SmallUNet(), batch_of).go()
    return folder, numbers(folder)


def numbers(folder):
    return [[line[name] for name in NUMBERS] for line in read(folder / "metrics.jsonl")]


def sunk(folder, small_unet, make_batch, **settings):
    settings = {"launch__data_sink": True, "launch__sink_size": 3, "optim__gradient_accumulation_steps": 2} | settings
    return start(configuration(folder, STEPS, **settings), small_unet(), make_batch)


def assert_same(folder, plain):
    assert numbers(folder) == plain[1]
    assert sorted(path.name for path in (folder / "state").iterdir()) == ["step_10", "step_4", "step_8"]
    for step in (4, 8, 10):
        for name in (f"weights/unet_{step}.ckpt", f"state/step_{step}/optimizer.ckpt"):
            assert (folder / name).read_bytes() == (plain[0] / name).read_bytes(), name


def test_on_a_cpu_it_is_the_same_run_and_the_host_waits_once_a_sink(
    small_unet, make_batch, tmp_path, plain, monkeypatch, caplog
):
    fetched, fetch = [], Recorder.fetch

    def counted(recorder):
        fetched.append(len(recorder._waiting))
        return fetch(recorder)

    monkeypatch.setattr(Recorder, "fetch", counted)
    with caplog.at_level(logging.INFO):
        sunk(tmp_path / "sunk", small_unet, make_batch).go()
    assert_same(tmp_path / "sunk", plain)
    assert fetched == [1, 2, 1, 2, 2, 1, 1]  # compiling, then the end of a sink (3, 6, 9), a checkpoint (4, 8) or all
    assert "a CPU has no queue of its own" in caplog.text


def test_on_ascend_a_queue_feeds_the_same_run(small_unet, make_batch, tmp_path, plain, on_ascend, caplog):
    with caplog.at_level(logging.INFO):
        sunk(tmp_path / "sunk", small_unet, make_batch).go()
    assert_same(tmp_path / "sunk", plain)
    assert "mindspore.data_sink feeds the device" in caplog.text


def test_what_was_read_ahead_is_not_lost_when_a_run_stops(
    small_unet, make_batch, tmp_path, plain, on_ascend, monkeypatch
):
    one_step = Run.one_step

    def stopping(run):
        one_step(run)
        if run.done == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "one_step", stopping)
        first = sunk(tmp_path / "sunk", small_unet, make_batch)
        first.go()
    assert first.done == 5
    sunk(tmp_path / "sunk", small_unet, make_batch, train__resume="latest").go()
    assert numbers(tmp_path / "sunk") == plain[1]
    name = f"weights/unet_{STEPS}.ckpt"
    assert (tmp_path / "sunk" / name).read_bytes() == (plain[0] / name).read_bytes()


def test_the_queue_gives_every_batch_once_in_order(make_batch, monkeypatch):
    monkeypatch.setattr(ms, "data_sink", stand_in)
    plain, source = FakeBatches(make_batch), FakeBatches(make_batch)
    feed = sink.feed(LaunchConfig(data_sink=True), source, 100, target="Ascend")
    for _ in range(12):
        batch, fields = next(plain), next(feed)
        assert feed.cursor == plain.cursor
        for field, expected in zip(fields, batch.values(), strict=True):
            np.testing.assert_array_equal(field.asnumpy(), expected)
    assert source.cursor > feed.cursor


def test_a_fault_of_the_data_is_told_as_ever(make_batch, monkeypatch):
    monkeypatch.setattr(ms, "data_sink", stand_in)
    feed = sink.feed(LaunchConfig(data_sink=True), FakeBatches(make_batch, events={6: "gone"}), 100, target="Ascend")
    with pytest.raises(SuiteError, match=r"picture a\.png cannot be used"):
        _ = [next(feed) for _ in range(7)]


def test_networks_do_not_encode_beside_the_step():
    from gm.config import load

    given = ["--data_path", "D", "--data_sink", "--multi_graph"]
    with pytest.raises(UsageError, match="--data_sink reads ahead"):
        load(given)
    load([*given, "--cache_latent", "--cache_text_embedding"])
