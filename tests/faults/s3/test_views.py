"""S16: what somebody planted, or a disk spoilt, where people look at runs of a store on S3."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.cli import report
from flows.cli import store as cli
from spin_core.errors import BadInput, StoreError
from spin_core.store.s3 import runs as remote_runs
from spin_core.store.s3.remote import RemoteStore
from tests.faults.fault import Fault
from tests.faults.s3.held import Held
from tests.faults.s3.server import BUCKET
from tests.faults.store.battery import compute
from tests.security.test_content import obeyed

S16 = Fault("S16", "what people see of runs on S3 is planted, altered, cut, or gone: it is not shown")
URL = f"s3://{BUCKET}/views"
RUNS = "views/spinloop-store-v1/runs/"
HOSTILE = b"# table \x1b]0;owned\x07\x1b[2J \xe2\x80\xae <script>alert(1)</script>\n"
HERE = b"# the run's own table\n"


@pytest.fixture
def service(held: Held, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Held:
    """A store of one run with a report, which another machine made."""
    monkeypatch.setenv("SPINLOOP_CACHE", str(tmp_path / "made"))
    store = RemoteStore(URL)
    store.write_run_file("run-1", "steps.json", b"[]")
    store.link_run("run-1", {"001-finetune": compute(store).digest})
    for name in ("report.md", "report.html"):
        store.write_run_file("run-1", name, HERE)
    monkeypatch.setenv("SPINLOOP_CACHE", str(tmp_path / "seen"))
    return held


def seen(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """What `spinloop report` of this machine prints, or the sentence with which it ends; and the page's content."""
    store = RemoteStore(URL, create=False, read_only=True)
    said = "".join(store.notes)
    try:
        report._report(argparse.Namespace(store=URL, compare=None, run="", preset="", out=""))
    except (BadInput, StoreError) as error:
        said += str(error)
    out = capsys.readouterr()
    page = store.root / "latest" / "report.html"
    return said + out.out + out.err, page.read_text(encoding="utf-8") if page.exists() else ""


def planted(name: str) -> Callable[[Held], None]:
    def plant(held: Held) -> None:
        held.objects[f"{RUNS}run-1/files/{name}"] = HOSTILE

    return plant


def pointer(change: Callable[[dict], object]) -> Callable[[Held], None]:
    def alter(held: Held) -> None:
        body = json.loads(held.objects[f"{RUNS}run-1/run.json"])
        made = change(body)
        held.objects[f"{RUNS}run-1/run.json"] = made if isinstance(made, bytes) else json.dumps(body).encode()

    return alter


ATTACKS: dict[str, Callable[[Held], object]] = {
    "report.md": planted("report.md"),
    "report.html": planted("report.html"),
    "another page": planted("more.html"),
    "cut": lambda held: held.objects.update({f"{RUNS}run-1/files/report.html": HERE[:-3]}),
    "gone": lambda held: held.objects.pop(f"{RUNS}run-1/files/report.md"),
    "a pointer without sums": pointer(lambda body: body.pop("files")),
    "a pointer that is a page": pointer(lambda body: b"<html>\x1b[2J</html>"),
    "a pointer that is empty": pointer(lambda body: b""),
    "an order that is none": pointer(lambda body: body.update(order="\x1b[2J")),
    "a name that leaves": pointer(lambda body: body["files"].update({"../../../out": "a" * 64})),
    "a label that is obeyed": pointer(lambda body: body["links"].update({"\x1b[2J": "a" * 64})),
    "a run that is obeyed": lambda held: held.objects.update(
        {
            f"{RUNS}\x1b[2J/run.json": b'{"links": {}, "order": 9, "files": {}}',
            f"{RUNS}\x1b[2J/files/report.md": HOSTILE,
        }
    ),
    "latest": lambda held: held.objects.update({"views/spinloop-store-v1/latest": b"\x1b[2J"}),
}


def test_what_was_planted_in_a_run_is_not_shown(service, capsys, tmp_path):
    """Catches a report with somebody's script in the place where people are told to open theirs, and escapes for the
    terminal; also on a machine that had seen the run before."""
    made = dict(service.objects)

    def trial(name: str) -> None:
        for before in (False, True):
            os.environ["SPINLOOP_CACHE"] = str(tmp_path / f"{name}{before}".replace(" ", "-"))
            service.objects = dict(made)
            if before:
                assert HERE.decode() in seen(capsys)[0]
            ATTACKS[name](service)
            said, page = seen(capsys)
            assert not obeyed(said.replace("\t", "")) and "alert(1)" not in said, said
            assert page in ("", HERE.decode()), page
            files = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
            assert not [path for path in files if path.name == "out" or HOSTILE in path.read_bytes()]
            if not before and name.startswith(("report", "cut", "gone")):
                assert "not what its run wrote; it is not shown" in said, said

    S16.each(ATTACKS, trial)


def test_pointer_that_is_none_is_set_aside_by_who_may_write(service):
    """Catches a run that can never be shown again, and a reader that changes the bucket."""
    pointer(lambda body: b"<html></html>")(service)
    there = dict(service.objects)
    reader = RemoteStore(URL, create=False, read_only=True)
    assert service.objects == there and "it stays there" in reader.notes[0]
    writer = RemoteStore(URL)
    assert "it is set aside in quarantine/" in writer.notes[0] and f"{RUNS}run-1/run.json" not in service.objects
    assert b"<html></html>" in service.objects.values()
    writer.link_run("run-1", {})
    assert not [note for note in RemoteStore(URL).notes if "pointer" in note]


def test_runs_of_an_older_version_are_named(service):
    """Catches reports that vanish without a word, and files that count as checked."""
    pointer(lambda body: body.pop("files"))(service)
    store = RemoteStore(URL, create=False, read_only=True)
    assert "1 of 1 runs, such as run-1, do not say what is in their files" in store.notes[0]
    assert not (store.root / "runs" / "run-1" / "report.md").exists()


def test_output_that_no_record_names_is_not_fetched(service, capsys):
    """Catches a model that somebody put under `best`, with files and manifest, and without a record."""
    key = next(key for key in service.objects if "/records/" in key)
    fetch = argparse.Namespace(store=URL, what="run-1/001-finetune")
    cli._fetch(fetch)
    assert "/trees/" in capsys.readouterr().out
    del service.objects[key]
    with pytest.raises(StoreError, match="no record names this output"):
        cli._fetch(fetch)


@pytest.mark.parametrize("order", [-1, 1.0, True, "1", None, [1]])
def test_pointer_with_an_order_that_is_none_is_no_pointer(order):
    """Catches a run that is the latest, or the first to go, by a word; and one that cannot be compared with others."""
    with pytest.raises(ValueError, match="a place among the runs that is none"):
        remote_runs.parse(json.dumps({"links": {}, "order": order}).encode())
