"""Peak memory is that of the device that computes."""

import resource
from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import numpy as np

from gm.training.memory import peak_bytes


def test_on_the_cpu_it_is_that_of_the_process():
    held = np.ones(2**24)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    assert held.nbytes < resident <= peak_bytes() < 2**40


def test_on_a_device_it_is_what_its_allocator_gave_out(monkeypatch):
    monkeypatch.setattr(ms, "get_context", {"device_target": "Ascend"}.get)
    monkeypatch.setattr(ms, "runtime", SimpleNamespace(max_memory_allocated=lambda: 123))
    assert peak_bytes() == 123
