"""What ranks compare before they start: every difference is named, and what may differ does not."""

import shutil
import threading

import pytest

from gm.config import load
from gm.errors import SuiteError
from gm.parallel import agreement
from gm.parallel.peers import Peers


class Company:
    """Ranks as threads: ``gather`` as ``Peers`` has it, without processes."""

    def __init__(self, size):
        self.size, self.values = size, [None] * size
        self.barrier = threading.Barrier(size)

    def rank(self, rank):
        return Rank(self, rank)

    def run(self, work) -> list[str]:
        """``work(rank)`` for all at once; what each raised, or nothing."""
        told = [""] * self.size

        def one(rank):
            try:
                work(self.rank(rank))
            except SuiteError as error:
                told[rank] = str(error)

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return told


class Rank:
    agree = Peers.agree

    def __init__(self, company, rank):
        self.company, self.rank, self.size = company, rank, company.size
        self.hosts = [f"server-{rank // 2}" for rank in range(company.size)]

    def gather(self, name, value=None):
        self.company.barrier.wait(30)
        self.company.values[self.rank] = value
        self.company.barrier.wait(30)
        return list(self.company.values)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(agreement, "VISIBLE", 0.3)
    data = tmp_path / "data"
    data.mkdir()
    for number in range(3):
        (data / f"{number}.png").write_bytes(bytes(100 + number))
        (data / f"{number}.txt").write_text("a thing")
    (tmp_path / "unet.ckpt").write_bytes(bytes(range(256)) * 40_000)  # larger than the blocks that are looked at
    return tmp_path


def config(place, *more, data="data", weight="unet.ckpt", save_path="runs"):
    flags = ["--data_path", str(place / data), "--weight", str(place / weight), "--save_path", str(place / save_path)]
    return load([*flags, *more], usage="")


def differences(ours, theirs) -> set[str]:
    first, second = agreement.facts(ours), agreement.facts(theirs)
    assert first.keys() == second.keys()
    return {name for name in first if first[name] != second[name]}


def test_equal_ranks_agree_and_leave_nothing_behind(place):
    same = config(place)
    assert Company(3).run(lambda peers: agreement.check(same, peers)) == ["", "", ""]
    assert list((place / "runs").iterdir()) == []


def test_a_copy_at_another_place_is_the_same(place):
    shutil.copytree(place / "data", place / "elsewhere")
    (place / "elsewhere" / ".scan.json").write_text("{}")  # what reading leaves behind
    shutil.copy(place / "unet.ckpt", place / "copy.ckpt")
    assert not differences(config(place), config(place, "--threads", "1", data="elsewhere", weight="copy.ckpt"))


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--learning_rate", "2e-5"], "optim.learning_rate"),
        (["--seed", "5"], "train.seed"),
        (["--precision", "bf16"], "launch.precision"),
        (["--max_train_steps", "7"], "train.max_train_steps"),
    ],
)
def test_every_setting_counts(place, flags, name):
    assert differences(config(place), config(place, *flags)) == {name}


def test_a_picture_more_or_longer_counts(place):
    shutil.copytree(place / "data", place / "elsewhere")
    (place / "elsewhere" / "2.png").write_bytes(bytes(7))
    assert differences(config(place), config(place, data="elsewhere")) == {"the data"}


def test_a_tar_shard_that_is_longer_counts(place):
    for name in ("one", "other"):
        (place / name).mkdir()
        for number in (0, 1):
            (place / name / f"{number}.tar").write_bytes(bytes(10 + number * (name == "other")))
    assert differences(*(config(place, data=f"{name}/{{0..1}}.tar") for name in ("one", "other"))) == {"the data"}


@pytest.mark.parametrize("change", ["longer", "another"])
def test_other_weights_count(place, change):
    content = (place / "unet.ckpt").read_bytes()
    (place / "other.ckpt").write_bytes(content + b"x" if change == "longer" else content[::-1])
    assert differences(config(place), config(place, weight="other.ckpt")) == {"the weights"}


def test_a_rank_that_differs_ends_all_with_its_name(place):
    own = {2: config(place, "--learning_rate", "3e-5")}
    same = config(place)
    for line in Company(4).run(lambda peers: agreement.check(own.get(peers.rank, same), peers)):
        assert line.startswith("rank 2 on server-1 differs in optim.learning_rate (3e-05, rank 0: ")
        assert "rank 1" not in line
        assert "rank 3" not in line


def test_a_rank_that_sees_another_folder_is_named(place):
    own = {1: config(place, save_path="local"), 3: config(place, save_path="local")}
    same = config(place)
    for line in Company(4).run(lambda peers: agreement.check(own.get(peers.rank, same), peers)):
        assert line.startswith("rank 1 on server-0, rank 3 on server-1: no sight of what rank 0 writes to --save_path")


def test_a_folder_rank_0_cannot_write_to_is_one_line(place):
    (place / "runs").write_text("in the way")
    for line in Company(2).run(lambda peers: agreement.check(config(place), peers)):
        assert "rank 0 cannot write to --save_path" in line
        assert "a file is in the way" in line


def test_caching_needs_the_cache_folder_alone(place):
    caching = config(place, "--task", "cache", "--cache_path", str(place / "cache"))
    assert Company(2).run(lambda peers: agreement.check(caching, peers)) == ["", ""]
    assert not (place / "runs").exists()


def test_a_dry_run_writes_nothing(place):
    assert Company(2).run(lambda peers: agreement.check(config(place, "--dry_run"), peers)) == ["", ""]
    assert not (place / "runs").exists()
