"""The benchmark of the cache runs, on so little that its figures mean nothing."""

import re

import pytest


@pytest.fixture(scope="module")
def benchmark(load_door):
    return load_door("tools/benchmark/cache.py")


@pytest.mark.parametrize(
    ("task", "figures"),
    [
        (("build", "--seconds", "0.001", "--rounds", "1", "--resolution", "64"), r"ratio \d+\.\d+"),
        (("read", "--resolution", "64"), r"second epoch, 2 workers: \d+ samples/s of 64 px"),
        (("entries",), r"first start, 24 pictures: \d\.\d s \(\d\.\d s of a core\) to scan and open"),
        (
            ("scan", "--size", "64x48"),
            r"(?s)first scan of pictures, 24 samples: \d.*second scan of tars, 24 samples: \d",
        ),
    ],
)
def test_it_runs_and_leaves_nothing(benchmark, capsys, monkeypatch, tmp_path, task, figures):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    benchmark.main([*task, "--pictures", "24"])
    assert re.search(figures, capsys.readouterr().out)
    assert not list(tmp_path.iterdir())
