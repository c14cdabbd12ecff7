"""How devices are connected, by stand-ins for MindSpore's calls: those it documents on Ascend, a store on the CPU."""

import importlib
import sys
from datetime import timedelta
from types import ModuleType, SimpleNamespace

import pytest

from gm.errors import SuiteError
from gm.parallel.processes import VARIABLES, Process

SECOND = Process("mpirun", rank=1, size=4)
FIRST = Process("mpirun", rank=0, size=4)


class FakeMindSpore:
    """The calls of ``mindspore.communication.management`` and the store, noted."""

    def __init__(self, monkeypatch, newer=False, found=None, failure=None, taken=0):
        self.calls, self.taken = [], taken
        management = SimpleNamespace(
            init=lambda: self.note("init", failure),
            get_rank=lambda: (found or (1, 4))[0],
            get_group_size=lambda: (found or (1, 4))[1],
        )
        name = "_init_with_store" if newer else "_init_without_sched"
        setattr(management, name, lambda **given: self.note(name, failure, **given))
        modules = {
            "mindspore": ModuleType("mindspore"),
            "mindspore.communication": SimpleNamespace(management=management),
            "mindspore.mint": ModuleType("mindspore.mint"),
            "mindspore.mint.distributed": SimpleNamespace(TCPStore=self.store),
        }
        for module, stand_in in modules.items():
            monkeypatch.setitem(sys.modules, module, stand_in)
        monkeypatch.delitem(sys.modules, "gm.parallel.communication", raising=False)
        self.module = importlib.import_module("gm.parallel.communication")
        monkeypatch.delitem(sys.modules, "gm.parallel.communication")

    def note(self, name, failure, **given):
        self.calls.append((name, given))
        if failure:
            raise RuntimeError(failure)

    def store(self, host, port, size, first, timeout, wait_for_workers=True):
        if self.taken:
            self.taken -= 1
            raise RuntimeError("the port is taken")
        self.calls.append(("store", {"host": host, "port": port, "first": first, "waits": wait_for_workers}))
        return "the store"


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def peers(port=4000):
    """Rank 0's port comes through the peers, whatever this rank gives."""
    return SimpleNamespace(gather=lambda name, value: [value or port] * 4)


def test_on_ascend_the_launchers_own_way_is_taken(monkeypatch):
    mindspore = FakeMindSpore(monkeypatch)
    mindspore.module.join("Ascend", SECOND, peers(), 60)
    assert mindspore.calls == [("init", {})]


@pytest.mark.parametrize("newer", [False, True])
def test_on_the_cpu_ranks_meet_at_the_store_of_rank_0(monkeypatch, newer):
    mindspore = FakeMindSpore(monkeypatch, newer)
    mindspore.module.join("CPU", SECOND, peers(), 60)
    (store, stored), (name, given) = mindspore.calls
    assert (store, stored) == ("store", {"host": "127.0.0.1", "port": 4000, "first": False, "waits": True})
    assert name == ("_init_with_store" if newer else "_init_without_sched")
    assert given == {
        "timeout": timedelta(seconds=60) if newer else 60_000,
        "world_size": 4,
        "rank": 1,
        "store": "the store",
    }


def test_rank_0_draws_another_port_if_one_is_taken_and_waits_for_nobody_before_it_has_told(monkeypatch):
    mindspore = FakeMindSpore(monkeypatch, found=(0, 4), taken=2)
    mindspore.module.join("CPU", FIRST, peers(), 60)
    assert mindspore.calls[0][1]["first"]
    assert not mindspore.calls[0][1]["waits"]


def test_no_port_at_all_is_one_line(monkeypatch):
    mindspore = FakeMindSpore(monkeypatch, found=(0, 4), taken=99)
    with pytest.raises(SuiteError, match=r"^rank 0 finds no free port on 127\.0\.0\.1$"):
        mindspore.module.join("CPU", FIRST, SimpleNamespace(gather=lambda name, value: [value] * 4), 60)


@pytest.mark.parametrize("target", ["Ascend", "CPU"])
def test_a_failure_is_one_line(monkeypatch, target):
    mindspore = FakeMindSpore(monkeypatch, failure="HCCL timed out\n\n- C++ call stack")
    with pytest.raises(SuiteError, match=f"^{target}: rank 1 cannot be connected with the others: HCCL timed out$"):
        mindspore.module.join(target, SECOND, peers(), 60)


def test_mindspore_and_the_launcher_must_count_alike(monkeypatch):
    mindspore = FakeMindSpore(monkeypatch, found=(0, 1))
    with pytest.raises(SuiteError, match="mpirun says rank 1 of 4, MindSpore rank 0 of 1"):
        mindspore.module.join("Ascend", SECOND, peers(), 60)
