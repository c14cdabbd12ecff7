"""What every test stands on: MindSpore's settings before its import, and examples that come out the same each time."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reached the network would be a different test each day

from hypothesis import settings

import gm  # noqa: F401  (prepares the environment MindSpore reads at import)

# Compiling a graph takes seconds, so a deadline per example would measure the machine.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("suite")
