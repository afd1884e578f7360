"""The way that a user's data set takes: resolved, hashed, read, cut into rows by the reformat stage."""

from __future__ import annotations

import json
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spin_core.errors import BadInput
from spin_core.job import Job
from spin_core.sources.resolve import resolve
from spin_core.stages import reformat
from tests.faults.input.text_corpus import Outcome

DATASET = reformat.Dataset(path="x", test_fraction=0.4)


class Hung(BaseException):
    """An input took too long. No Exception, so that nothing on the way takes it for an error of the file."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises Hung in what takes longer."""

    def ring(*_: object) -> None:
        raise Hung(f"over {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    except Hung as error:
        raise AssertionError(f"hangs: {error}") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def prepare(path: Path, dataset: reformat.Dataset = DATASET, seconds: int = 60) -> Outcome:
    """What came of the data set at `path`: the sentence, or counts of rows and rejects."""
    with limited(seconds), tempfile.TemporaryDirectory() as out:
        job = Job(Path(out), Path(out))
        try:
            source = resolve(str(path), "dataset", "", Path("/nonexistent"), dataset.split)
            counts = reformat.run({"source": Path(source.path)}, reformat.Config(dataset=dataset, seed=1), job)
        except BadInput as error:
            return Outcome(str(error))
        listed = Counter(json.loads(line)["reason"] for line in (job.out / "rejects.jsonl").read_text().splitlines())
        assert counts["rejected"] == dict(listed), "the counts are not those of the list"
        return Outcome("", counts["rejected"], counts["train_rows"] + counts["test_rows"])


def check(outcome: Outcome, wanted: Outcome, named: str) -> None:
    """Assert that the outcome is the wanted one, and its sentence one that a person can use."""
    if not wanted.refused:
        assert outcome == wanted
        return
    sentence = outcome.refused
    assert wanted.refused.partition("|")[0] in sentence or wanted.refused.rpartition("|")[2] in sentence, sentence
    assert named in sentence, f"no file in: {sentence}"
    assert len(sentence) < 1000 and sentence.isprintable(), sentence
