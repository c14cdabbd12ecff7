"""The log of a run begins before its folder does."""

import logging

from gm.training.run_folder import logged

log = logging.getLogger("gm.test")


def test_what_was_said_before_there_was_a_file_is_in_it(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    handlers = list(logging.getLogger().handlers)
    for turn in (1, 2):  # the second goes on with the file of the first
        with logged() as write_to:
            log.info("weights %d", turn)
            write_to(tmp_path / "log.txt")
            log.info("steps %d", turn)
        log.info("later")
    lines = [line.split(" ", 2)[2] for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert lines == ["weights 1", "steps 1", "weights 2", "steps 2"]
    with logged():
        log.info("nobody asked for a file")
    assert logging.getLogger().handlers == handlers
