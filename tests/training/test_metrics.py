"""The metrics file survives interruption: no step twice, no line half read."""

import json
import struct
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event

from gm.training.metrics import Metrics, read


def events(folder: Path) -> list[Event]:
    """What TensorBoard would read: records of length, checksum, event, checksum (TensorFlow's record format)."""
    found = []
    for path in sorted(folder.glob("events*"), key=lambda path: path.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def test_tensorboard_has_every_value_in_its_group(tmp_path):
    with Metrics(tmp_path / "metrics.jsonl", tmp_path / "board") as metrics:
        metrics.add(3, loss=0.5, raw_loss=None, images_per_second=4.0, data_seconds=0.25, eval_loss=0.125)
        metrics.show(0, {"eval_timesteps/0999": 2.0})
    with Metrics(tmp_path / "metrics.jsonl", tmp_path / "board", step=3) as metrics:
        metrics.add(4, loss=0.25)
    shown = [
        (event.step, value.tag, value.simple_value)
        for event in events(tmp_path / "board")
        for value in event.summary.value
    ]
    assert shown == [
        (3, "train/loss", 0.5),
        (3, "perf/images_per_second", 4.0),
        (3, "time/data_seconds", 0.25),
        (3, "eval/eval_loss", 0.125),
        (0, "eval_timesteps/0999", 2.0),
        (4, "train/loss", 0.25),
    ]
    (start,) = [event for event in events(tmp_path / "board") if event.HasField("session_log")]
    assert (start.step, start.session_log.status) == (4, start.session_log.START)


def test_resuming_drops_what_came_after_and_a_line_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with Metrics(path, tmp_path / "board") as metrics:
        for step in range(1, 6):
            metrics.add(step, loss=1.0 / step)
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    with Metrics(path, tmp_path / "board", step=3) as metrics:
        metrics.add(4, loss=0.5)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]
    assert read(path)[-1] == {"step": 4, "loss": 0.5}
    assert list((tmp_path / "board").glob("events*"))


def test_no_file_has_no_records(tmp_path):
    assert read(tmp_path / "none.jsonl") == []
