"""Schedules: continuous at the warm-up's end, monotone after it, and exact where they have closed forms."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gm.training.lr import SCHEDULES, learning_rate

PEAK = 3e-4


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(warmup=st.integers(0, 50), total=st.integers(1, 200))
def test_rises_to_the_peak_and_never_beyond(schedule, warmup, total):
    rates = [learning_rate(schedule, step, PEAK, warmup, total) for step in range(total)]
    assert all(0 <= rate <= PEAK * (1 + 1e-12) for rate in rates)
    rising, falling = rates[:warmup], rates[warmup:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    if warmup and total >= warmup:
        assert rates[warmup - 1] == pytest.approx(PEAK)
    if total > warmup:
        assert rates[warmup] == pytest.approx(PEAK)


def test_closed_forms_halfway():
    halves = {"constant": 1.0, "linear": 0.5, "cosine": 0.5, "polynomial": 0.25}
    for schedule, share in halves.items():
        assert learning_rate(schedule, 10 + 50, PEAK, 10, 110) == pytest.approx(share * PEAK)
    quarter = learning_rate("cosine", 25, PEAK, 0, 100)
    assert quarter == pytest.approx(PEAK * 0.5 * (1 + math.cos(math.pi / 4)))


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="no schedule"):
        learning_rate("sawtooth", 0, PEAK, 0, 10)
