"""What a running stage can say."""

from pathlib import Path

from spin_core.job import Job


def test_note_is_given_once_and_by_the_first_process_only(monkeypatch) -> None:
    """Catches a warning for every model that a stage loads, and one for every process that trains."""
    events: list[dict] = []
    job = Job(Path("out"), Path("scratch"), send=events.append)
    for text in ("padded", "padded", "falls"):
        job.note(text)
    assert events == [{"note": "padded"}, {"note": "falls"}]
    monkeypatch.setenv("RANK", "1")
    job.note("another")
    assert len(events) == 2
