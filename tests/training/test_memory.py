"""Peak memory is that of the device that computes."""

import resource
from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import numpy as np

from gm.models.architecture import UNetArchitecture
from gm.training.memory import activations, peak_bytes


def test_on_the_cpu_it_is_that_of_the_process():
    held = np.ones(2**24)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    assert held.nbytes < resident <= peak_bytes() < 2**40


def test_on_a_device_it_is_what_its_allocator_gave_out(monkeypatch):
    monkeypatch.setattr(ms, "get_context", {"device_target": "Ascend"}.get)
    monkeypatch.setattr(ms, "runtime", SimpleNamespace(max_memory_allocated=lambda: 123))
    assert peak_bytes() == 123


def test_recomputing_leaves_less_and_more_blocks_leave_more():
    arch = UNetArchitecture()
    plain, transformers, every = (activations(arch, 128, 128, what) for what in ("none", "transformer", "all"))
    assert plain > 5 * transformers > 5 * every > 0
    # 2 sides as long: convolutions leave 4 times as much, the scores of attention 16 times
    assert 4 < activations(arch, 256, 256) / plain < 16
