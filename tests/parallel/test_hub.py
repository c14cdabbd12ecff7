"""What the hub concludes from time that passes, with a clock of the test's own; test_peers has it with processes."""

import socket

import pytest

from gm.parallel.hub import FAREWELL, PAUSED, Hub
from gm.parallel.pace import BEHIND, MARGIN

SILENCE = 10.0


class Line:
    """A guard's connection that only listens."""

    def __init__(self):
        self.told = []

    def send(self, message):
        self.told.append(message)
        return True

    @property
    def stopped(self):
        lines = [message["stop"] for message in self.told if "stop" in message]
        return lines[0] if lines else None


class Meeting:
    """A hub with ranks that have come, and time that passes as told."""

    def __init__(self, size=3, ranks=None):
        self.hub = Hub(socket.socket(), "job", size, start_timeout=60, silence=SILENCE)
        self.lines = [Line() for _ in range(size)]
        self.time = self.hub.begun
        for rank in range(size) if ranks is None else ranks:
            hello = {"hello": "job", "rank": rank, "size": size, "host": "a", "pid": 100 + rank, "cores": []}
            self.hub._welcome(self.lines[rank], hello)

    def say(self, rank, **message):
        self.hub.heard_of[rank] = self.hub.now
        self.hub._take(rank, message)

    def wait(self, seconds, silent=()):
        """Time passes; all but the ``silent`` ones give signs of life."""
        end = self.time + seconds
        while self.time < end:
            self.time = min(self.time + 1, end)
            for rank in set(self.hub.heard_of) - set(silent):
                self.hub.heard_of[rank] = self.time
            self.hub._look(self.time)

    @property
    def stopped(self):
        told = {line.stopped for line in self.lines}
        assert len(told) == 1  # all are told the same
        return told.pop()


def test_signs_of_life_are_enough():
    meeting = Meeting()
    meeting.wait(100 * SILENCE)
    assert meeting.stopped is None
    assert [message for message in meeting.lines[0].told if "roster" in message]


def test_silence_ends_all_and_names_the_rank():
    meeting = Meeting()
    meeting.wait(SILENCE, silent=[1])
    assert meeting.stopped is None
    meeting.wait(2, silent=[1])
    assert meeting.stopped == "rank 1 (a, process 101) was lost: not a sign of life for 10 s"


def test_a_hub_that_was_stopped_itself_blames_nobody():
    meeting = Meeting()
    meeting.time += SILENCE + PAUSED + 1
    meeting.hub._look(meeting.time)
    assert meeting.stopped is None
    meeting.wait(SILENCE + 1, silent=[2])
    assert "rank 2" in meeting.stopped


def test_who_does_not_come_is_named():
    meeting = Meeting(size=4, ranks=[0, 2])
    meeting.wait(61)
    line = meeting.lines[0].stopped
    assert line == meeting.lines[2].stopped
    assert line.startswith("ranks 1, 3 of 4 did not come within 60 s")


def test_a_compilation_may_take_as_long_as_it_takes():
    meeting = Meeting()
    for rank in range(3):
        meeting.say(rank, step=1)
    meeting.wait(100 * BEHIND * SILENCE)
    assert meeting.stopped is None


@pytest.mark.parametrize("late", [0, 1])
def test_a_rank_for_which_the_others_wait_too_long_is_named(late):
    meeting = Meeting()
    for rank in range(3):
        meeting.say(rank, step=7)
    for rank in {0, 1, 2} - {late}:
        meeting.say(rank, step=8)
    meeting.wait(BEHIND * SILENCE - 1)
    assert meeting.stopped is None
    meeting.wait(3)
    assert meeting.stopped == f"rank {late} (a, process {100 + late}) hangs: step 8 was begun by others 300 s ago"


def test_a_rank_that_catches_up_is_not_blamed():
    meeting = Meeting()
    for step in range(1, 5):
        for rank in (1, 2):
            meeting.say(rank, step=step)
        meeting.wait(BEHIND * SILENCE - 1)
        meeting.say(0, step=step)
    assert meeting.stopped is None


def test_once_steps_have_been_timed_nobody_waits_long_for_one():
    meeting = Meeting()
    for step in (1, 2):
        for rank in range(3):
            meeting.say(rank, step=step)
            meeting.say(rank, done=1)
    meeting.say(1, busy=1)
    meeting.wait(2 * SILENCE)
    meeting.say(1, busy=-1)
    meeting.say(1, step=3)
    meeting.wait(SILENCE + MARGIN - 1)
    assert meeting.stopped is None
    meeting.wait(2)
    assert meeting.stopped.startswith("rank 0 (a, process 100), rank 2 (a, process 102) hang: no step has begun")


def test_who_does_not_come_to_a_gathering_is_named():
    meeting = Meeting()
    meeting.say(0, say=1, turn=0, name="agreement")
    meeting.say(2, say=1, turn=0, name="agreement")
    meeting.wait(BEHIND * SILENCE - 1)
    assert meeting.stopped is None
    meeting.wait(2)
    assert meeting.stopped == "rank 1 (a, process 101) hangs: others have waited at 'agreement' for 300 s"


def test_an_early_farewell_gives_the_others_time_but_not_for_ever():
    meeting = Meeting()
    meeting.say(1, bye=1)
    meeting.wait(FAREWELL * SILENCE - 1)
    assert meeting.stopped is None
    meeting.wait(2)
    assert meeting.stopped == "rank 0 (a, process 100) is still at work 100 s after another rank has ended"


def test_ranks_that_are_at_different_places_are_told():
    meeting = Meeting()
    meeting.say(0, say=1, turn=0, name="store")
    meeting.say(2, say=1, turn=0, name="agreement")
    assert meeting.stopped == "the ranks have lost each other: rank 2 is at 'agreement', others at 'store'"


def test_all_end_after_the_furthest_step():
    meeting = Meeting()
    meeting.say(2, end="SIGTERM")
    meeting.say(1, end="SIGTERM")
    assert sum("hold" in message for message in meeting.lines[0].told) == 1
    for rank, step in enumerate((7, 9, 8)):
        meeting.say(rank, at=step)
    assert meeting.lines[0].told[-1] == {"end_at": 9}


def test_another_number_of_processes_is_told():
    meeting = Meeting(ranks=[0])
    hello = {"hello": "job", "rank": 1, "size": 4, "host": "b", "pid": 7, "cores": []}
    meeting.hub._welcome(meeting.lines[1], hello)
    assert meeting.lines[0].stopped == "rank 1 was started as one of 4 processes, rank 0 as one of 3"
