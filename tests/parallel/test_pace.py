"""Who hangs, told from steps: what takes long for a good reason is waited for, what does not is not."""

import pytest

from gm.parallel.pace import BEHIND, MARGIN, SLOW, Pace

SILENCE = 10.0
LEAST = SILENCE + MARGIN


class Training:
    """Two ranks and a clock."""

    def __init__(self, size=2):
        self.pace, self.now = Pace(size, SILENCE), 100.0

    def wait(self, seconds):
        """The time passes; what was hanging before, or is after."""
        self.now += seconds
        return self.pace.hanging(self.now)

    def begin(self, step, *ranks):
        for rank in ranks or (0, 1):
            self.pace.begins(rank, step, self.now)

    def end(self, *ranks):
        for rank in ranks or (0, 1):
            self.pace.ends(rank, self.now)

    def busy(self, seconds, *ranks):
        """What is no part of a step."""
        for rank in ranks or (0, 1):
            self.pace.is_busy(rank, 1, self.now)
        found = self.wait(seconds)
        for rank in ranks or (0, 1):
            self.pace.is_busy(rank, -1, self.now)
        return found

    def steps(self, *numbers, seconds=1.0):
        for number in numbers:
            self.begin(number)
            assert self.wait(seconds) is None
            self.end()


@pytest.fixture
def training():
    """It has compiled, and taken steps of a second."""
    training = Training()
    training.begin(1)
    assert training.busy(1000 * SILENCE) is None
    training.end()
    training.steps(2, 3)
    return training


def test_the_first_step_compiles_as_long_as_it_takes_and_is_no_measure(training):
    training.begin(4)
    assert training.wait(LEAST) is None
    assert training.wait(0.1) is not None


def test_a_rank_that_does_not_begin_the_step_of_the_others_is_the_one_that_hangs(training):
    training.begin(4, 0)
    assert training.wait(LEAST) is None
    ranks, why = training.wait(0.1)
    assert ranks == [1]
    assert why == "no step has begun or ended for 13 s, after steps of 1.0 s at most"


def test_where_nobody_is_behind_all_are_named(training):
    training.begin(4)
    ranks, _ = training.wait(LEAST + 0.1)
    assert ranks == [0, 1]


def test_slow_steps_are_waited_for_longer(training):
    training.steps(4, seconds=9)
    training.begin(5)
    assert training.wait(SLOW * 9) is None
    assert training.wait(0.1) is not None


def test_steps_that_are_fetched_together_have_their_time_together(training):
    """With --log_interval the host hands out steps in no time, and then waits for all of them."""
    training.begin(4)
    training.begin(13)
    assert training.wait(10 * SLOW * 1.0) is None
    training.end()
    training.steps(14, seconds=5)  # the ten were of 5 seconds each, and so the longest
    training.begin(15)
    assert training.wait(SLOW * 5.0) is None
    assert training.wait(0.1) is not None


def test_while_one_rank_is_busy_the_others_may_have_to_wait_for_it(training):
    training.begin(4, 1)
    assert training.busy(5 * SILENCE, 0) is None
    training.begin(4, 0)
    assert training.wait(LEAST) is None
    training.end()
    training.begin(5)  # what rank 1 waited was not the time of a step
    assert training.wait(LEAST + 0.1) is not None


def test_work_within_other_work_counts_once(training):
    training.pace.is_busy(0, 1, training.now)
    assert training.busy(5 * SILENCE, 0) is None  # drawing compiles, too
    assert training.wait(5 * SILENCE) is None
    training.pace.is_busy(0, -1, training.now)
    assert training.wait(LEAST + 0.1) is not None


@pytest.mark.parametrize("begun", [0, 3])
def test_not_even_for_a_busy_rank_others_wait_for_ever(begun):
    training = Training(3)
    if begun:
        training.begin(begun, 0, 1, 2)
    training.pace.is_busy(2, 1, training.now)
    training.begin(begun + 1, 0, 1)
    assert training.wait(BEHIND * SILENCE) is None
    ranks, why = training.wait(1)
    assert ranks == [2]
    assert why == f"step {begun + 1} was begun by others 300 s ago"


def test_time_in_which_nobody_could_be_heard_is_nobodys_fault(training):
    training.begin(4, 0)
    training.now += 2 * BEHIND * SILENCE
    training.pace.forgive(training.now)
    assert training.wait(LEAST) is None
    assert training.wait(0.1) is not None
