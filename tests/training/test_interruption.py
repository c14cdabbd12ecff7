"""A signal asks; where nothing can be lost it ends the process."""

import os
import signal

import pytest

from gm.training.interruption import Interruption


class EndedError(Exception):
    pass


@pytest.fixture(autouse=True)
def ends(monkeypatch):
    def end(code: int) -> None:
        raise EndedError(code)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr("logging.shutdown", lambda: None)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_the_first_asks_and_the_second_interrupts(number):
    before, told = signal.getsignal(number), []
    with Interruption(told.append) as interruption:
        send(number)
        assert interruption.requested
        with pytest.raises(KeyboardInterrupt):
            send(number)
    assert signal.getsignal(number) is before
    assert told == [signal.Signals(number).name]


def test_with_nothing_to_lose_it_ends_at_once(caplog):
    caplog.set_level("INFO")
    with Interruption() as interruption:
        with pytest.raises(EndedError, match="0"), interruption.nothing_to_lose("goodbye"):
            send(signal.SIGTERM)
        assert "SIGTERM: goodbye" in caplog.text
        send(signal.SIGTERM)  # outside of the block it only asks
        assert interruption.requested


def test_what_was_asked_before_is_not_forgotten():
    with Interruption() as interruption:
        send(signal.SIGTERM)
        with pytest.raises(EndedError), interruption.nothing_to_lose("goodbye"):
            pytest.fail("the long work began")
