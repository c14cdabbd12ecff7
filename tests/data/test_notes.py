import os
import time

import pytest

from gm.data import notes
from gm.data.notes import FileNotes


@pytest.fixture
def read(tmp_path):
    """Remember the hash of a file in notes read afresh from disk; gives the hash and how often it was computed."""
    calls = []

    def remember(path):
        calls.clear()
        book = FileNotes(tmp_path / "notes.json")
        result = book.remember(path, "bytes", lambda path: calls.append(path) or path.read_bytes().hex())
        book.save()
        return result, len(calls)

    return remember


def test_untouched_files_are_not_read_again(tmp_path, read, monkeypatch):
    monkeypatch.setattr(notes, "YOUNG", -1)
    path = tmp_path / "a"
    path.write_bytes(b"one")
    first, computed = read(path)
    assert computed == 1
    assert read(path) == (first, 0)


def test_a_changed_file_is_noticed_even_under_its_old_date(tmp_path, read, monkeypatch):
    monkeypatch.setattr(notes, "YOUNG", -1)
    path = tmp_path / "a"
    path.write_bytes(b"one")
    first, _ = read(path)
    times = os.stat(path)
    time.sleep(0.02)
    path.write_bytes(b"two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    second, computed = read(path)
    assert computed == 1
    assert second != first


def test_hashes_of_files_written_just_now_are_not_trusted_later(tmp_path, read):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    assert read(path)[1] == read(path)[1] == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff"])
def test_broken_notes_only_cost_time(tmp_path, read, content):
    (tmp_path / "notes.json").write_bytes(content)
    (tmp_path / "a").write_bytes(b"one")
    assert read(tmp_path / "a")[1] == 1
