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
    rising, falling = rates[: warmup + 1], rates[warmup:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    if warmup:
        assert rates[0] == 0
    if total > warmup:
        assert rates[warmup] == pytest.approx(PEAK)


def test_closed_forms_halfway():
    halves = {"constant": 1.0, "linear": 0.5, "cosine": 0.5, "polynomial": 0.25}
    for schedule, share in halves.items():
        assert learning_rate(schedule, 10 + 50, PEAK, 10, 110, power=2.0) == pytest.approx(share * PEAK)
    quarter = learning_rate("cosine", 25, PEAK, 0, 100)
    assert quarter == pytest.approx(PEAK * 0.5 * (1 + math.cos(math.pi / 4)))


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="no schedule"):
        learning_rate("sawtooth", 0, PEAK, 0, 10)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "polynomial"])
def test_ends_where_it_is_told_and_stays_there(schedule):
    assert [learning_rate(schedule, step, PEAK, 5, 20, 1e-5, 2.0) for step in (20, 30)] == pytest.approx([1e-5, 1e-5])


@pytest.mark.reference
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("warmup", "total", "power"), [(0, 40, 1.0), (7, 40, 2.0), (7, 8, 1.0)])
def test_equals_diffusers(schedule, warmup, total, power):
    torch = pytest.importorskip("torch")
    optimization = pytest.importorskip("diffusers.optimization")
    # diffusers has an end for polynomial only
    end = 1e-7 if schedule == "polynomial" else 0.0
    name = "constant_with_warmup" if schedule == "constant" else schedule
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    theirs = optimization.get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total, power=power)
    for step in range(total + 1):
        ours = learning_rate(schedule, step, PEAK, warmup, total, end, power)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-15), step
        optimizer.step()
        theirs.step()
