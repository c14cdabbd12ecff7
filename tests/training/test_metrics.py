"""The metrics file survives interruption: no step twice, no line half read."""

import json

from gm.training.metrics import Metrics, read


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
