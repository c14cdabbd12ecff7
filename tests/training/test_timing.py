"""Seconds are counted once, under what they were spent on."""

import time

from gm.training.timing import Stopwatch


def test_work_within_other_work_counts_as_its_own_kind_only(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = Stopwatch()
    with watch("step") as step:
        now[0] += 1
        with watch("save") as save:
            now[0] += 10
            with watch("data"):
                now[0] += 100
        watch.book("compile", 0.25)
        now[0] += 2
    assert (step(), save()) == (2.75, 10)
    assert watch.seconds == {"step": 2.75, "save": 10, "data": 100, "compile": 0.25}
    with watch("step"):
        now[0] += 3
    assert watch.seconds["step"] == 5.75


def test_the_split_is_in_words_largest_first():
    watch = Stopwatch()
    for kind, seconds in (("data", 11), ("step", 88.5), ("save", 0.5)):
        watch.book(kind, seconds)
    assert watch.split() == "88 % step, 11 % data"
