"""Making a cache: interrupted, by several at once, and with everything going wrong."""

import errno
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gm.data import cache, cache_work, claims, datasets, decoding
from gm.data.cache_plan import Plan
from gm.data.claims import Claims
from gm.errors import SuiteError, explain

ROOT = Path(cache.__file__).parents[2]
SHARDS = 5 + 6  # of two entries: ten pictures, eleven captions


def start_build(pictures, target, **options) -> subprocess.Popen:
    words = [f"{name}={value}" for name, value in options.items()]
    command = [sys.executable, str(Path(__file__).with_name("small_build.py")), str(pictures), str(target), *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes)


def wait_for_shards(process: subprocess.Popen, target, count: int) -> None:
    while len(list(Path(target).glob("*/*.safetensors"))) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def said(process: subprocess.Popen) -> str:
    """What a process that ended well has said."""
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return out


@pytest.fixture
def fill(config, make_encoders, tokenizers, monkeypatch):
    """Fill the cache in this process, in shards of two entries; gives how often each was encoded."""
    monkeypatch.setattr(cache_work, "SHARD_ENTRIES", 2)
    monkeypatch.setattr(cache_work, "TEXT_BATCH", 2)
    monkeypatch.setattr(cache_work, "PAUSE", 0.01)

    def run(**options):
        encoders, made = make_encoders(), Counter()
        encode = encoders.encode_pictures

        def count(pictures):
            made.update({picture.tobytes() for picture in pictures})
            return encode(pictures)

        encoders.encode_pictures = count
        cache.build(config, encoders, tokenizers, progress=False, **options)
        return made

    return run


@pytest.fixture
def whole(fill, config, files):
    """A cache filled without interruption: its files. The one to be filled next is another one."""
    path = config.cache.path
    config.cache.path += "_whole"
    fill()
    contents = files(config.cache.path)
    config.cache.path = path
    assert len(contents) == SHARDS + 2
    return contents


class TestInterrupted:
    @pytest.mark.slow
    def test_killed_at_random_moments_it_ends_with_the_same_bytes(self, pictures, tmp_path, files):
        said(start_build(pictures, tmp_path / "whole"))
        whole = files(tmp_path / "whole")
        moments = random.Random(0)
        for shards in (1, 4, 7):
            process = start_build(pictures, tmp_path / "killed", pause=0.05)
            wait_for_shards(process, tmp_path / "killed", shards)
            time.sleep(moments.uniform(0, 0.06))
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            assert files(tmp_path / "killed") != whole
        said(start_build(pictures, tmp_path / "killed"))
        assert files(tmp_path / "killed") == whole  # nor is anything else left there

    def test_what_a_killed_process_left_half_written_is_removed(self, fill, config, whole, files):
        for name in whole:
            path = Path(config.cache.path, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}.999.tmp").write_bytes(b"half")
            path.with_name(f".{path.name}.claim").write_bytes(b"process 999 on nowhere")
        fill()
        left = set(files(config.cache.path)) - set(whole)
        assert left == {f"{kind}/.index.json.999.tmp" for kind in ("latents", "texts")}

    @pytest.mark.parametrize("processes", [False, True])
    def test_interrupted_from_the_keyboard_it_says_one_line_and_nobody_stays(self, pictures, tmp_path, processes):
        process = start_build(pictures, tmp_path / "cache", pause=0.2, processes=processes)
        wait_for_shards(process, tmp_path / "cache", 1)
        helpers = children(process.pid)
        assert bool(helpers) == processes
        for one in (process.pid, *helpers):  # as a terminal does
            os.kill(one, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (130, "error: interrupted: run the same command again to go on\n")
        assert not [one for one in helpers if alive(one)]

    def test_processes_that_decode_end_with_the_one_that_was_killed(self, pictures, tmp_path):
        process = start_build(pictures, tmp_path / "cache", pause=0.2, processes=True)
        wait_for_shards(process, tmp_path / "cache", 1)
        helpers = children(process.pid)
        assert helpers
        process.kill()
        process.communicate()
        ends = time.monotonic() + 20
        while any(alive(one) for one in helpers):
            assert time.monotonic() < ends
            time.sleep(0.05)


def children(process: int) -> list[int]:
    """Those of a process: they decode pictures."""
    lists = [path.read_text() for path in Path(f"/proc/{process}/task").glob("*/children")]
    return [int(one) for text in lists for one in text.split()]


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class TestShared:
    @pytest.mark.slow
    def test_four_processes_at_once_encode_everything_once_and_end_with_the_same_bytes(self, pictures, tmp_path, files):
        said(start_build(pictures, tmp_path / "alone"))
        ranks = [start_build(pictures, tmp_path / "shared", pause=0.1, rank=rank) for rank in range(4)]
        lines = [said(process).splitlines()[-1] for process in ranks]
        assert files(tmp_path / "shared") == files(tmp_path / "alone")
        made = [[int(count) for count in re.search(r"(\d+) and (\d+) encoded now", line).groups()] for line in lines]
        assert np.sum(made, axis=0).tolist() == [10, 11]
        assert sum(any(counts) for counts in made) > 1

    @pytest.mark.slow
    def test_one_that_is_killed_leaves_its_share_to_the_others(self, pictures, tmp_path, files):
        said(start_build(pictures, tmp_path / "alone"))
        victim = start_build(pictures, tmp_path / "shared", pause=0.5)
        wait_for_shards(victim, tmp_path / "shared", 1)
        other = start_build(pictures, tmp_path / "shared", rank=0)
        wait_for_shards(other, tmp_path / "shared", SHARDS - 2)
        victim.kill()
        victim.communicate()
        assert re.search(rf"process {victim.pid} on \S+ ended before it had made", said(other))
        assert files(tmp_path / "shared") == files(tmp_path / "alone")

    def test_it_waits_for_what_others_make_and_makes_what_they_leave(self, fill, config, whole, files):
        latents = Path(config.cache.path, "latents")
        first, second = [name for name in whole if name.startswith("latents/32")][:2]
        with Claims(latents) as others:
            assert others.take(Path(first).name)
            assert others.take(Path(second).name)
            made: list[Counter] = []
            thread = threading.Thread(target=lambda: made.append(fill()))
            thread.start()
            while len(list(latents.glob("*.safetensors"))) < 3:
                time.sleep(0.01)
            (latents / Path(first).name).write_bytes(whole[first])
            others.drop(Path(first).name)
            time.sleep(0.05)
            assert thread.is_alive()
        thread.join(10)
        assert files(config.cache.path) == whole
        assert len(made[0]) == 8  # not the two of the first

    def test_it_does_not_wait_for_ever(self, fill, config, whole, files, monkeypatch, caplog):
        monkeypatch.setattr(cache_work, "PATIENCE", 0.1)
        shard = Path(next(name for name in whole if name.startswith("latents/32"))).name
        with Claims(Path(config.cache.path, "latents")) as others:
            others.take(shard)
            fill()
        assert f"no sign of process {os.getpid()} on" in caplog.text
        assert files(config.cache.path) == whole

    def test_only_rank_0_shows_how_far_it_is_how_fast_and_for_how_long(
        self, config, encoders, tokenizers, capsys, monkeypatch
    ):
        monkeypatch.setattr(cache_work, "SHARD_ENTRIES", 2)
        cache.build(config, encoders, tokenizers, rank=1)
        assert "pictures" not in capsys.readouterr().err
        config.cache.dtype = "fp16"
        cache.build(config, encoders, tokenizers)
        shown = capsys.readouterr().err
        for kind, count in (("pictures", 10), ("captions", 11)):
            assert re.search(rf"cache {kind}: +\d+%\|.*\| \d+/{count} \[\d\d:\d\d<\d\d:\d\d, +\S+ {kind}/s\]", shown)

    def test_only_rank_0_writes_the_index(self, fill, config, whole, files):
        fill(rank=1)
        indexes = {f"{kind}/index.json" for kind in ("latents", "texts")}
        assert set(whole) - set(files(config.cache.path)) == indexes
        assert fill() == Counter()
        assert files(config.cache.path) == whole

    def test_one_of_them_reads_the_pictures_for_their_names(self, fill, config, monkeypatch, caplog):
        monkeypatch.setattr(claims, "PATIENCE", 0.1)
        monkeypatch.setattr(claims, "PAUSE", 0.01)
        with Claims(Path(config.cache.path)) as others:
            others.take("pictures.json")
            begun = time.monotonic()
            fill()
            assert time.monotonic() - begun > 0.1
        assert "has been at pictures.json for" in caplog.text


class TestDecodedByProcesses:
    def test_the_bytes_are_those_of_threads(self, fill, config, whole, files, monkeypatch):
        monkeypatch.setattr(decoding, "WORTH_PROCESSES", 0)
        fill()
        assert files(config.cache.path) == whole

    def test_broken_pictures_are_told_all_the_same(self, fill, pictures, monkeypatch, draw_picture):
        monkeypatch.setattr(decoding, "WORTH_PROCESSES", 0)
        draw_picture(pictures / "5.png", seed=5)
        (pictures / "5.png").write_bytes((pictures / "5.png").read_bytes()[:-900])
        with pytest.raises(SuiteError, match=r"broken pictures: 5.png \(broken picture: .*--on_bad_sample skip"):
            fill()


@contextmanager
def unprivileged(folder):
    """Nobody may write to ``folder``, and root is nobody in particular."""
    os.chmod(folder, 0o555)
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield
    os.chmod(folder, 0o755)


class TestGoingWrong:
    def test_a_full_disk_is_one_line_and_what_was_made_stays(self, fill, config, whole, files, monkeypatch):
        written, sync = [], os.fsync

        def full(file):
            written.append(file)
            if len(written) == 4:
                raise OSError(errno.ENOSPC, "No space left on device")
            sync(file)

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space") as error:
                fill()
        line, code = explain(error.value)
        assert code == 1
        assert re.fullmatch(
            r"no space left on the disk at \S+\.safetensors: free some and run the same command again", line
        )
        there = files(config.cache.path)
        assert len(there) == 3
        assert there.items() <= whole.items()
        assert len(fill()) == 4
        assert files(config.cache.path) == whole

    def test_a_disk_that_is_too_small_is_told_at_the_start(self, fill, monkeypatch, config, files):
        monkeypatch.setattr(cache_work.shutil, "disk_usage", lambda _: SimpleNamespace(total=10**9, free=5000))
        with pytest.raises(SuiteError, match=r"the cache of 10 pictures takes 0.00 GB and the disk of \S+latents has"):
            fill()
        assert not files(config.cache.path)

    def test_a_folder_that_may_not_be_written_to_is_told_before_anything_is_encoded(self, config, fill, tmp_path):
        (tmp_path / "file").write_text("")
        config.cache.path = str(tmp_path / "file")
        with pytest.raises(OSError, match="file") as error:
            fill()
        assert explain(error.value) == (
            f"a file is in the way at {tmp_path}/file/latents: choose another place",
            1,
        )
        config.cache.path = "/proc/cache"
        with pytest.raises(OSError, match="proc") as error:
            fill()
        assert explain(error.value)[0] == "no such file or folder at /proc/cache/latents"

    def test_a_folder_without_permission_is_told(self, config, fill, pictures):
        with tempfile.TemporaryDirectory() as open_to_all, unprivileged(open_to_all):
            config.cache.path = f"{open_to_all}/cache"
            with pytest.raises(PermissionError) as error:
                fill(samples=[])
        line = "no permission at {}/cache/texts: choose a folder you may write to, or change its rights"
        assert explain(error.value) == (line.format(open_to_all), 1)

    @pytest.mark.parametrize("event", ["gone", "changed"])
    @pytest.mark.parametrize("on_bad_sample", ["error", "skip"])
    def test_a_picture_that_goes_or_changes_meanwhile_is_told_and_never_stored_under_the_old_name(
        self, fill, config, pictures, files, draw_picture, monkeypatch, event, on_bad_sample
    ):
        config.data.on_bad_sample = on_bad_sample
        gather, picture = Plan.gather, pictures / "5.png"

        def then(*arguments):
            plan = gather(*arguments)
            picture.unlink() if event == "gone" else draw_picture(picture, seed=99)
            return plan

        with monkeypatch.context() as patched:
            patched.setattr(Plan, "gather", then)
            reason = "cannot be read any more" if event == "gone" else "was changed"
            with pytest.raises(SuiteError, match=rf"picture 5.png {reason}.*run the same command again"):
                fill()
        before = set(files(config.cache.path))
        draw_picture(picture, seed=5)
        assert len(fill()) == 10 - 2 * len(before)  # whole shards of two are there

    def test_a_picture_that_goes_after_the_scan_is_told(self, fill, config, pictures):
        samples = datasets.scan(config.data)
        (pictures / "5.png").unlink()
        with pytest.raises(SuiteError, match=r"picture 5.png cannot be read any more"):
            fill(samples=samples)

    def test_an_encoder_that_fails_leaves_what_was_made(self, config, make_encoders, tokenizers, fill, whole, files):
        encoders = make_encoders()
        encode, calls = encoders.encode_pictures, []

        def failing(pictures):
            calls.append(len(pictures))
            if len(calls) == 3:
                raise RuntimeError("device lost")
            return encode(pictures)

        encoders.encode_pictures = failing
        before = threading.active_count()
        with pytest.raises(RuntimeError, match="device lost"):
            cache.build(config, encoders, tokenizers, progress=False)
        assert threading.active_count() == before
        there = files(config.cache.path)
        assert len(there) == 2
        assert there.items() <= whole.items()
        fill()
        assert files(config.cache.path) == whole
