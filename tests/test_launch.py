"""MindSpore made ready: the right device and mode, what is missing told in one line, one line in the log."""

import json
import logging
import os
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

import gm.compilation  # noqa: F401  (with the real MindSpore: what stands in for it here has no Cells)
from gm.config.sections.machine import LaunchConfig
from gm.errors import SuiteError, UsageError
from gm.launch import Device, share, start
from gm.parallel.processes import VARIABLES

# What start() does lasts as long as the process, so the real one runs in a process of its own.
PROBE = """
import json, logging, os, sys
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
from gm.config.sections.machine import LaunchConfig
from gm.launch import start
device = start(LaunchConfig(**json.loads(sys.argv[1])))
import mindspore as ms
mode = {ms.GRAPH_MODE: "graph", ms.PYNATIVE_MODE: "pynative"}[ms.get_context("mode")]
print(json.dumps([device.target, device.rank, device.size, ms.get_context("device_target"), mode,
                  ms.get_context("deterministic"), len(os.sched_getaffinity(0))]))
"""


def started(**settings):
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(settings)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def test_a_real_start_on_the_cpu_in_graph_mode():
    done = started(device_target="CPU", max_device_memory="59GB", threads=1)
    assert json.loads(done.stdout) == ["CPU", 0, 1, "CPU", "graph", "ON", 1]
    lines = [line for line in done.stderr.splitlines() if line.startswith("device ")]
    assert len(lines) == 1
    assert all(word in lines[0] for word in ("CPU", "graph mode", "MindSpore 2.", "numpy 1.", "59GB does not apply"))
    assert "deprecat" not in done.stderr.lower().replace("deprecationwarning: getname", "")


def test_a_real_start_in_pynative_mode():
    done = started(device_target="CPU", ms_mode=1, deterministic=False)
    assert json.loads(done.stdout) == ["CPU", 0, 1, "CPU", "pynative", "OFF", len(os.sched_getaffinity(0))]


class FakeMindSpore:
    """Notes what it is told; ``ascend`` says whether Ascend can be loaded."""

    GRAPH_MODE, PYNATIVE_MODE = 0, 1

    def __init__(self, ascend: bool, version: str = "2.9.0", failure: str = ""):
        self.calls = []
        self.failure = failure
        self.__version__ = version
        self.runtime = SimpleNamespace(set_memory=lambda **limits: self.calls.append(("memory", limits)))
        self.device_context = SimpleNamespace(
            ascend=SimpleNamespace(is_available=lambda: ascend),
        )

    def set_device(self, *device):
        if self.failure:
            raise RuntimeError(self.failure)
        self.calls.append(("device", *device))

    def set_context(self, **context):
        self.calls.append(("context", context))

    def set_deterministic(self, on):
        self.calls.append(("deterministic", on))


@pytest.fixture
def fake(monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)

    def install(**kind) -> FakeMindSpore:
        mindspore = FakeMindSpore(**kind)
        monkeypatch.setitem(sys.modules, "mindspore", mindspore)
        return mindspore

    return install


@pytest.mark.parametrize(
    ("wanted", "ascend", "target"),
    [
        ("auto", True, "Ascend"),
        ("auto", False, "CPU"),
        ("Ascend", True, "Ascend"),
        ("CPU", True, "CPU"),
        ("CPU", False, "CPU"),
    ],
)
def test_which_device_is_taken(fake, wanted, ascend, target):
    mindspore = fake(ascend=ascend)
    assert start(LaunchConfig(device_target=wanted)) == Device(target, rank=0, size=1)
    assert mindspore.calls[0] == (("device", "Ascend", 0) if target == "Ascend" else ("device", "CPU"))


def test_device_id_chooses_the_card(fake, monkeypatch):
    mindspore = fake(ascend=True)
    monkeypatch.setenv("DEVICE_ID", "5")
    start(LaunchConfig())
    assert ("device", "Ascend", 5) in mindspore.calls


def test_threads_keep_the_process_on_as_many_of_its_cores(fake, monkeypatch, caplog):
    kept = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {2, 3, 5})
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: kept.append(cores))
    for threads in (None, 2, 9):
        fake(ascend=False)
        start(LaunchConfig(threads=threads))
    assert kept == [[2, 3]]  # it has all three already
    assert "3 cores only" in caplog.text


def test_memory_is_limited_on_ascend_only(fake):
    on_ascend, limit = fake(ascend=True), LaunchConfig(max_device_memory="59 gb")
    start(limit)
    assert ("memory", {"max_size": "59GB"}) in on_ascend.calls
    on_cpu = fake(ascend=False)
    start(limit)
    assert "memory" not in [name for name, *_ in on_cpu.calls]


def test_a_senseless_memory_limit_is_refused(fake):
    fake(ascend=True)
    with pytest.raises(UsageError, match="--max_device_memory"):
        start(LaunchConfig(max_device_memory="plenty"))


def test_a_missing_device_is_one_line_with_a_remedy(fake):
    fake(ascend=False)
    with pytest.raises(SuiteError, match=r"^--device_target Ascend: .*--device_target CPU$"):
        start(LaunchConfig(device_target="Ascend"))


def test_a_device_that_fails_is_one_line(fake):
    fake(ascend=True, failure="card 0 is busy\n\nC++ call stack\n...")
    with pytest.raises(SuiteError, match=r"^device Ascend cannot be set up: card 0 is busy$"):
        start(LaunchConfig())


def test_numpy_2_is_refused_before_it_breaks_something(fake, monkeypatch):
    fake(ascend=False)
    monkeypatch.setattr("numpy.__version__", "2.1.0")
    with pytest.raises(SuiteError, match=r"numpy 2\.1\.0 .*pip install 'numpy<2'"):
        start(LaunchConfig())


def test_a_missing_mindspore_is_one_line(fake, monkeypatch):
    fake(ascend=False)
    monkeypatch.setitem(sys.modules, "mindspore", None)
    with pytest.raises(SuiteError, match=r"MindSpore cannot be imported .*pip install"):
        start(LaunchConfig())


@pytest.mark.parametrize(
    ("version", "warns"), [("2.7.1", True), ("2.8.0", False), ("2.10.0", False), ("2.11.0rc1", True)]
)
def test_an_untested_release_is_said_but_taken(fake, caplog, version, warns):
    fake(ascend=False, version=version)
    with caplog.at_level(logging.INFO, logger="gm.launch"):
        start(LaunchConfig())
    assert any(record.levelno == logging.WARNING for record in caplog.records) is warns


@pytest.mark.parametrize(
    "variables",
    [{"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "3"}, {"PMI_SIZE": "8", "PMI_RANK": "3"}],
)
def test_what_one_process_does_alone_is_not_done_by_several(fake, monkeypatch, variables):
    fake(ascend=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SuiteError, match="mpirun started 8 processes"):
        start(LaunchConfig())


def test_one_process_where_several_were_expected_is_said(fake, caplog):
    fake(ascend=False)
    assert start(LaunchConfig(is_parallel=True), together=True).size == 1
    assert "one process was started" in caplog.text


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("cores", [1, 2, 7, 8])
def test_processes_of_a_machine_share_its_cores(cores, count):
    parts = [share(range(cores), place, count) for place in range(count)]
    assert {len(part) for part in parts} == {max(cores // count, 1)}
    uses = [sum(core in part for part in parts) for core in range(cores)]
    assert max(uses) - min(uses) <= 1
    if count <= cores:
        assert max(uses) == 1


def test_threads_of_several_processes_start_at_different_cores():
    assert [share(range(8), place, 4, threads=2) for place in range(4)] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [share([2, 3], place, 2, threads=5) for place in range(2)] == [[2, 3], [2, 3]]


class Heard:
    """Peers that note what they are told."""

    busy = nullcontext

    def __init__(self):
        self.told = []

    def leave(self):
        self.told.append("bye")

    def failed(self, reason):
        self.told.append(reason)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (None, "bye"),
        (SystemExit(0), "bye"),
        (SuiteError("no picture left"), "no picture left"),
        (FileNotFoundError(2, "", "a.png"), "no such file or folder at a.png"),
        (ValueError("shapes differ\n\nC++ call stack"), "ValueError: shapes differ"),
    ],
)
def test_the_others_are_told_how_it_ended(error, told):
    peers = Heard()
    device = Device("CPU", 1, 2, peers)
    if error is None:
        with device:
            pass
    else:
        with pytest.raises(type(error)), device:
            raise error
    assert peers.told == [told]


@pytest.fixture
def together(fake, monkeypatch):
    """Start rank 1 of 2 on a server of four cores, with stand-ins for the others and the communication."""
    joined, kept = [], []
    peers = Heard()
    peers.rank, peers.size, peers.neighbours = 1, 2, [0, 1]
    peers.hosts, peers.cores = ("server-a", "server-a"), ((0, 1, 2, 3), (0, 1, 2, 3))
    peers.agree = lambda facts: peers.told.append(facts)
    communication = SimpleNamespace(join=lambda target, process, *_: joined.append((target, process.rank)))
    monkeypatch.setitem(sys.modules, "gm.parallel.communication", communication)
    monkeypatch.setattr("gm.parallel.communication", communication, raising=False)
    monkeypatch.setattr("gm.launch.connect", lambda process, *_: peers)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(peers.cores[1]))
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: kept.append(cores))
    for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME", "ASCEND_OPP_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"SIZE": 2, "RANK": 1, "LOCAL_RANK": 1, "LOCAL_SIZE": 2}.items():
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", str(value))

    def run(ascend=False, **settings):
        mindspore = fake(ascend=ascend)
        return start(LaunchConfig(**settings), together=True), mindspore

    return SimpleNamespace(start=run, joined=joined, kept=kept, peers=peers)


def test_a_rank_computes_on_its_share_of_the_cores(together):
    device, _ = together.start()
    assert device == Device("CPU", 1, 2)
    assert device.peers is together.peers
    assert together.joined == [("CPU", 1)]
    assert together.kept == [[2, 3]]
    together.start(threads=1)
    assert together.kept[1:] == [[1]]


def test_cores_that_mpirun_has_given_stay(together):
    together.peers.cores = ((0, 1), (2, 3))
    together.start()
    assert together.kept == []


def test_a_rank_takes_its_card_and_leaves_the_cores_to_ascend(together, monkeypatch):
    monkeypatch.setenv("ASCEND_HOME_PATH", "there")
    device, mindspore = together.start(ascend=True)
    assert device == Device("Ascend", 1, 2)
    assert ("device", "Ascend", 1) in mindspore.calls
    assert together.joined == [("Ascend", 1)]
    assert together.kept == []


def test_ranks_must_have_the_same_device_and_versions(together):
    together.start()
    (facts,) = together.peers.told
    assert facts["device"] == "CPU"
    assert "MindSpore 2.9.0, numpy 1." in facts["versions"]


def test_the_scheduler_of_msrun_leaves_at_once_on_the_cpu(fake, monkeypatch):
    mindspore = fake(ascend=False)
    for name, value in {"MS_ROLE": "MS_SCHED", "MS_WORKER_NUM": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        start(LaunchConfig(device_target="CPU"), together=True)
    assert ended.value.code == 0
    assert mindspore.calls == []
