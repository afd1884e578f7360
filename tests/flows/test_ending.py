"""What a command prints and how it ends when its run is over and only Prefect's server does not know it."""

from __future__ import annotations

import logging

import pytest

from flows.ending import outcome_known, watched


def reported(outcome: object, what: str) -> int:
    """As the command line reports it: 7, so that it cannot be mistaken."""
    print(outcome, what)
    return 7


def test_run_that_ended_well_is_reported_and_its_server_noted(capsys) -> None:
    """Catches exit code 1 for a finished run whose server fell silent."""
    with pytest.raises(SystemExit) as left, watched(reported):
        outcome_known({"run": "x"})
        raise ConnectionError("gone")
    assert left.value.code == 7
    assert capsys.readouterr().out == "{'run': 'x'} did not take the end of this run (ConnectionError: gone)\n"


def test_what_goes_wrong_behind_a_runs_end_is_no_silent_server() -> None:
    """Catches a defect of ours that is reported as the server's, with exit code 0."""
    with pytest.raises(ValueError, match="ours"), watched(reported):
        outcome_known({"run": "x"})
        outcome_known(ValueError("ours"))
        raise RuntimeError("what Prefect makes of it")


def test_error_before_the_end_is_raised_as_it_was() -> None:
    """Catches a failure in the middle of a run that is taken for its end."""
    with pytest.raises(KeyError), watched(reported):
        raise KeyError("x")


def test_events_that_a_lost_server_did_not_get_are_not_printed(caplog) -> None:
    """Catches screens of Prefect's events behind the run's table: 2 kB for each that could not be sent."""
    logger = logging.getLogger("prefect._internal.concurrency")
    logger.addHandler(caplog.handler)  # Prefect's own loggers hand nothing up
    try:
        with watched(reported):
            logger.error("Service 'EventsWorker' failed to process item …")
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.records == []
