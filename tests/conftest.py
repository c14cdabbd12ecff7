"""What every test stands on: MindSpore's settings before its import, and examples that come out the same each time."""

import os

worker = os.environ.get("PYTEST_XDIST_WORKER", "")
if worker and hasattr(os, "sched_setaffinity"):
    # One core each, before MindSpore counts them: its kernel threads spin, and two processes on the same cores stall.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reached the network would be a different test each day

from hypothesis import settings

import gm  # noqa: F401  (prepares the environment MindSpore reads at import)

# Compiling a graph takes seconds, so a deadline per example would measure the machine.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("suite")
