"""The loss scale halves, doubles and counts as it should, whatever the order of overflows."""

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import Tensor

from gm.training.scaler import LARGEST, SMALLEST, LossScale

OUTCOMES = {"clean": (0.5, 2.0), "overflow": (0.5, np.inf), "nan gradient": (0.5, np.nan), "nan loss": (np.nan, np.nan)}


@pytest.fixture(scope="module")
def scaler():
    ms.set_context(mode=ms.GRAPH_MODE)
    return LossScale(64.0, window=3)


@given(history=st.lists(st.sampled_from(sorted(OUTCOMES)), min_size=1, max_size=12), start=st.integers(0, 24))
@settings(max_examples=30)
def test_follows_its_rules(scaler, history, start):
    scale, clean, skipped = 2.0**start, 0, 0
    for parameter, value in zip(scaler.state, (scale, 0.0, 0.0)):
        ms.ops.assign(parameter, Tensor(value, ms.float32))
    for outcome in history:
        used, count = (float(x.asnumpy()) for x in scaler(*(Tensor(x, ms.float32) for x in OUTCOMES[outcome])))
        assert used == scale
        if outcome == "clean":
            clean += 1
            if clean == 3:
                scale, clean = min(2 * scale, LARGEST), 0
        elif outcome != "nan loss":
            scale, clean, skipped = max(scale / 2, SMALLEST), 0, skipped + 1
        assert count == skipped
        assert [float(parameter.asnumpy()) for parameter in scaler.state] == [scale, clean, skipped]


def test_all_of_it_is_state():
    assert [parameter.name for parameter in LossScale().state] == [
        "loss_scale",
        "loss_scale_clean_steps",
        "skipped_steps",
    ]
