import errno
import os

import pytest

from gm.data import claims
from gm.data.claims import Claims


def test_a_claim_is_had_once_and_again_when_it_was_given_back(tmp_path):
    with Claims(tmp_path) as one, Claims(tmp_path) as other:
        assert one.take("a")
        assert not other.take("a")
        assert other.take("b")
        assert other.owner("a").startswith(f"process {os.getpid()} on ")
        one.drop("a")
        assert other.take("a")
    assert not os.listdir(tmp_path)


def test_a_claim_ends_with_its_owner(tmp_path):
    one, other = Claims(tmp_path), Claims(tmp_path)
    assert one.take("a")
    os.close(one._held.pop("a"))  # as when a process is killed: its name stays
    assert os.listdir(tmp_path) == [".a.claim"]
    assert other.take("a")
    other.drop("a")
    assert not os.listdir(tmp_path)


def test_only_claims_that_nobody_holds_are_cleared(tmp_path):
    (tmp_path / ".dead.claim").write_text("process 1 on nowhere")
    with Claims(tmp_path) as one, Claims(tmp_path) as other:
        one.take("a")
        other.take("b")
        one.clear()
        assert sorted(os.listdir(tmp_path)) == [".a.claim", ".b.claim"]


def test_where_there_are_no_locks_everybody_gets_every_claim(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "no locks")

    monkeypatch.setattr(claims.fcntl, "flock", refuse)
    with Claims(tmp_path) as one, Claims(tmp_path) as other:
        assert one.take("a")
        assert other.take("a")
    monkeypatch.setattr(claims, "fcntl", None)
    with Claims(tmp_path) as one, Claims(tmp_path) as other:
        assert one.take("a")
        assert other.take("a")
    assert not os.listdir(tmp_path)


def test_errors_name_the_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file") as error:
        Claims(tmp_path / "file").take("a")
    assert error.value.filename == str(tmp_path / "file")
