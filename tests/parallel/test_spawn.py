"""The scripts' launcher: five places checked, every rank told who it is, and nothing left behind however it ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gm.errors import SuiteError, UsageError
from gm.parallel import processes, rank_table, spawn

ROOT = Path(__file__).parents[2]
# Stands for train.py: it notes what it was given, then does what the flag --do says.
STAND_IN = """
import json, os, signal, sys, time
rank = int(os.environ["RANK_ID"])
print("rank", rank, "of", os.environ["RANK_SIZE"], flush=True)
told = {name: os.environ.get(name) for name in ("RANK_TABLE_FILE", "DEVICE_ID", "DEVICE_NUM", "MS_SCHED_PORT")}
with open(f"told_{rank}.json", "w") as file:
    json.dump([os.getpid(), sys.argv[1:], told], file)
os.rename(f"told_{rank}.json", f"rank_{rank}.json")
what = sys.argv[sys.argv.index("--do") + 1] if "--do" in sys.argv else ""
if what == "save":
    signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), print("saved", flush=True), sys.exit(0)))
if what == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if what == "fail":
    if rank == 1:
        print("error: no picture left", flush=True)
        sys.exit(7)
    print("error: rank 1 failed: no picture left; this rank stops too", flush=True)
    sys.exit(1)
if what:
    time.sleep(60)
"""

DOOR = """
from gm.errors import run_door
from gm.parallel import spawn
spawn.GRACE = 1.0  # a stand-in does not notice by itself that another one has failed
run_door(spawn.main)
"""


def server(number, cards):
    return rank_table.make(f"10.0.0.{number}", cards, {card: f"192.168.{number}.{card}" for card in cards})


@pytest.fixture
def place(tmp_path):
    """A folder with a dataset, the stand-in, and tables of one server (cards 4, 5, 6) and of two."""
    (tmp_path / "data").mkdir()
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    server(1, [4, 5, 6]).write(tmp_path / "one.json")
    rank_table.merge([server(1, [0, 1]), server(2, [0, 1])]).write(tmp_path / "two.json")
    return tmp_path


class Launched:
    def __init__(self, place, *arguments, command=("stand_in.py", "--first", "x"), **variables):
        environment = {name: value for name, value in os.environ.items() if name not in processes.VARIABLES}
        self.place = place
        self.process = subprocess.Popen(
            [sys.executable, "-c", DOOR, "logs", *command, "--", *arguments],
            cwd=place,
            env=environment | {"PYTHONPATH": str(ROOT)} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def told(self, ranks) -> dict[int, list]:
        """What each rank was given, once all are there."""
        files = {rank: self.place / f"rank_{rank}.json" for rank in ranks}
        deadline = time.monotonic() + 20
        while not all(file.exists() for file in files.values()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return {rank: json.loads(file.read_text()) for rank, file in files.items()}

    def ended(self) -> tuple[int, str, str]:
        output, errors = self.process.communicate(timeout=30)
        return self.process.returncode, output, errors


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_every_rank_is_told_who_it_is_and_has_its_log(place):
    launched = Launched(place, "one.json", "0", "3", "3", "data", "--learning_rate", "1e-5", "train.seed=3")
    code, output, errors = launched.ended()
    assert (code, errors) == (0, "")
    told = launched.told(range(3))
    ports = {rank[2].pop("MS_SCHED_PORT") for rank in told.values()}
    assert len(ports) == 1
    for rank, (_, arguments, variables) in told.items():
        assert arguments == ["--first", "x", "--data_path", "data", "--learning_rate", "1e-5", "train.seed=3"]
        table = str(place / "one.json")
        assert variables == {"RANK_TABLE_FILE": table, "DEVICE_ID": str(4 + rank), "DEVICE_NUM": "3"}
        assert (place / "logs" / f"log_{rank}.txt").read_text() == f"rank {rank} of 3\n"
    assert output.splitlines() == ["ranks 0 to 2 of 3: logs in logs/log_*.txt", "rank 0 of 3"]


def test_a_second_server_starts_its_own_ranks(place):
    launched = Launched(place, "two.json", "2", "4", "4", "data")
    assert launched.ended()[0] == 0
    told = launched.told([2, 3])
    assert {rank: variables["DEVICE_ID"] for rank, (_, _, variables) in told.items()} == {2: "0", 3: "1"}
    # Both servers must know the meeting point's port, so it is not drawn here.
    assert all(variables["MS_SCHED_PORT"] is None for _, _, variables in told.values())
    assert not (place / "rank_0.json").exists()


MEETING = """
import os
from gm.parallel import peers, processes
me = peers.connect(processes.identify(os.environ), int(os.environ.get("WAIT", 20)), 5)
print(me.gather("rank", [me.rank, me.process.device_id]))
me.leave()
"""


def meet(place, network=1, **variables) -> list[tuple[int, str, str]]:
    """What came of two servers with two ranks each; ``network``: where the second believes its cards are."""
    (place / "meeting.py").write_text(MEETING)
    for own in {1, network}:
        servers = [
            rank_table.make(f"127.0.0.{number}", [0, 1], {0: f"10.{own}.{number}.0", 1: f"10.{own}.{number}.1"})
            for number in (1, 2)
        ]
        rank_table.merge(servers).write(place / f"loop_{own}.json")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        variables["MS_SCHED_PORT"] = str(probe.getsockname()[1])
    second, first = (
        Launched(place, f"loop_{own}.json", *ranks, "4", "data", command=["meeting.py"], **variables)
        for own, ranks in ((network, ("2", "4")), (1, ("0", "2")))
    )
    return [first.ended(), second.ended()]


def test_two_servers_meet_at_the_address_of_the_first(place):
    for code, output, errors in meet(place):
        assert (code, errors) == (0, "")
        assert output.splitlines()[1] == "[[0, 0], [1, 1], [2, 0], [3, 1]]"


def test_servers_with_different_rank_tables_are_told(place):
    first, second = meet(place, network=2, WAIT="3")
    hint = "another job was: rank table .*; is the rank table the same on all servers"
    assert first[0] == second[0] == 1
    assert re.search(f"rank 0 .*ranks 2, 3 of 4 did not come within 3 s .{hint}", first[2])
    assert re.search(f"rank 2 .*rank 0 was not found at 127.0.0.1, .* within 3 s .{hint}", second[2])


def test_the_exit_code_and_the_line_are_those_of_the_rank_that_failed_first(place):
    code, _, errors = Launched(place, "one.json", "0", "2", "3", "data", "--do", "fail").ended()
    assert code == 7
    assert errors == "error: rank 1 ended with code 7: no picture left (logs/log_1.txt)\n"


def test_an_unexpected_error_is_found_in_the_log(place):
    (place / "broken.py").write_text(
        "import os\nif os.environ['RANK_ID'] == '1':\n    raise ValueError('shapes differ')"
    )
    code, _, errors = Launched(place, "one.json", "0", "2", "3", "data", command=["broken.py"]).ended()
    assert (code, errors) == (1, "error: rank 1 ended with code 1: ValueError: shapes differ (logs/log_1.txt)\n")


def test_when_one_is_killed_the_others_are_stopped(place, monkeypatch):
    launched = Launched(place, "one.json", "0", "3", "3", "data", "--do", "stubborn")
    pids = {rank: pid for rank, (pid, _, _) in launched.told(range(3)).items()}
    os.kill(pids[2], signal.SIGKILL)
    code, _, errors = launched.ended()
    assert code == 128 + signal.SIGKILL
    assert errors.startswith("error: rank 2 was ended by SIGKILL")
    assert all(gone(pid) for pid in pids.values())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_ranks_save(place, number):
    launched = Launched(place, "one.json", "0", "3", "3", "data", "--do", "save")
    launched.told(range(3))
    time.sleep(0.2)
    launched.process.send_signal(number)
    code, output, errors = launched.ended()
    assert (code, errors) == (0, "")
    assert f"{number.name}: the ranks save and end" in output
    assert all("saved" in (place / "logs" / f"log_{rank}.txt").read_text() for rank in range(3))


def test_a_second_signal_ends_at_once(place):
    launched = Launched(place, "one.json", "0", "2", "3", "data", "--do", "stubborn")
    pids = [pid for pid, _, _ in launched.told(range(2)).values()]
    time.sleep(0.2)
    begun = time.monotonic()
    launched.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    launched.process.send_signal(signal.SIGINT)
    assert launched.ended()[0] == 128 + signal.SIGKILL
    assert time.monotonic() - begun < 5
    assert all(gone(pid) for pid in pids)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_ranks_do_not_outlive_a_launcher_that_is_killed(place):
    launched = Launched(place, "one.json", "0", "2", "3", "data", "--do", "save")
    pids = [pid for pid, _, _ in launched.told(range(2)).values()]
    time.sleep(0.2)
    launched.process.kill()
    launched.ended()
    assert all(gone(pid) for pid in pids)
    assert "saved" in (place / "logs" / "log_0.txt").read_text()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "none were given"),
        (["one.json", "0", "3", "3"], "4 of 5 were given"),
        (["one.json", "0", "3", "3", "data", "cache"], "'cache' is one too many"),
        (["one.json", "0", "three", "3", "data"], "RANK_END is 'three', not a number"),
        (["one.json", "0", "3", "8", "data"], "RANK_SIZE is 8, but .*one.json has 3 devices"),
        (["one.json", "2", "2", "3", "data"], "RANK_START 2 and RANK_END 2"),
        (["one.json", "0", "4", "3", "data"], "RANK_START 0 and RANK_END 4"),
        (["two.json", "0", "4", "4", "data"], re.escape("on servers 10.0.0.1 and 10.0.0.2: start on each server")),
    ],
)
def test_wrong_arguments_are_one_line(place, monkeypatch, arguments, line):
    monkeypatch.chdir(place)
    with pytest.raises(UsageError, match=line):
        spawn.read_arguments(arguments)


def test_missing_files_are_one_line(place, monkeypatch):
    monkeypatch.chdir(place)
    with pytest.raises(SuiteError, match="no rank table at none"):
        spawn.read_arguments(["none.json", "0", "3", "3", "data"])
    with pytest.raises(SuiteError, match="no folder of pictures at none"):
        spawn.read_arguments(["one.json", "0", "3", "3", "none"])


WRONG = {
    "no_json": (lambda text: text[:-9], "is no rank table"),
    "twice": (lambda text: text.replace("192.168.1.5", "192.168.1.4"), "192.168.1.4"),
    "gap": (lambda text: text.replace('"rank_id": "2"', '"rank_id": "3"'), "rank"),
    "no_number": (lambda text: text.replace('"device_id": "5"', '"device_id": "five"'), "five"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_a_wrong_rank_table_starts_nothing(place, name):
    change, told = WRONG[name]
    text = (place / "one.json").read_text()
    assert change(text) != text
    (place / "wrong.json").write_text(change(text))
    code, output, errors = Launched(place, "wrong.json", "0", "3", "3", "data").ended()
    assert (code, output, len(errors.splitlines())) == (1, "", 1)
    assert errors.startswith("error: wrong.json")
    assert told in errors


def test_the_shell_scripts_hand_over_to_it(place):
    for name in ("run_distribute_vanilla_ft_910b.sh", "cache_data.sh"):
        done = subprocess.run(
            ["bash", str(ROOT / "scripts" / name), "one.json", "0", "8", "8", "data"],
            cwd=place,
            env=os.environ | {"PYTHON": sys.executable},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "error: RANK_SIZE is 8, but one.json has 3 devices\n"
