"""Files appear whole or not at all."""

import errno
import os

import pytest

from gm.errors import explain
from gm.files import make_folder, replacing, write_json, write_text

CONTENT = os.urandom(1000)


def test_what_is_written_is_in_the_file(tmp_path):
    with replacing(tmp_path / "deep/er/file.bin") as file:
        for begin in range(0, 1000, 13):
            file.write(CONTENT[begin : begin + 13])
        file.write(memoryview(CONTENT * 100))
        assert os.listdir(tmp_path / "deep/er") != ["file.bin"]
    assert (tmp_path / "deep/er/file.bin").read_bytes() == CONTENT * 101
    assert os.listdir(tmp_path / "deep/er") == ["file.bin"]


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def interrupted():
        with replacing(path) as file:
            file.write(CONTENT)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.bin"]


def test_a_full_disk_is_told_with_the_files_name(tmp_path):
    path = tmp_path / "file.bin"
    (tmp_path / f".file.bin.{os.getpid()}.tmp").symlink_to("/dev/full")  # a device without space
    with pytest.raises(OSError, match="No space") as error, replacing(path) as file:
        file.write(CONTENT * 100)
    assert error.value.errno == errno.ENOSPC
    assert explain(error.value) == (f"no space left on the disk at {path}: free some and run the same command again", 1)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("place", ["file/it.txt", "file/in/it.txt"])
def test_a_file_in_the_place_of_a_folder_is_told(tmp_path, place):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises((FileExistsError, NotADirectoryError)) as error:
        write_text(tmp_path / place, "")
    assert explain(error.value)[0].startswith(f"a file is in the way at {tmp_path}/file")


def test_the_temporary_name_is_never_told():
    with pytest.raises(OSError, match="proc") as error:
        write_text("/proc/it.txt", "")  # where no file can be made
    assert explain(error.value)[0].endswith(" /proc/it.txt")


def test_text_and_json(tmp_path):
    write_text(tmp_path / "a.txt", "é\n")
    write_json(tmp_path / "a.json", {"é": 1})
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\n"
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "é": 1\n}\n'


def test_a_folder_in_which_no_file_can_appear_is_told(tmp_path, monkeypatch):
    assert make_folder(tmp_path / "a" / "b").is_dir()
    assert make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError) as caught:
        make_folder(tmp_path / "file")
    assert explain(caught.value)[0] == f"a file is in the way at {tmp_path}/file: choose another place"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError) as caught:
        make_folder(tmp_path)
    assert explain(caught.value)[0].startswith(f"no permission at {tmp_path}: choose a folder you may write to")
