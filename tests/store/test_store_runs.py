"""runs/: what a person browses."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

from spin_core.errors import BadInput
from spin_core.store import fs
from tests.faults.store import battery
from tests.faults.store.battery import FILES, contents, publish


def test_link_run_shows_outputs_and_points_latest(store):
    """Catches links that do not lead to the output, and labels refused without need."""
    record = publish(store)
    store.link_run("demo.1", {"01-finetune": record.digest, "A_b.c-D": record.digest})
    store.link_run("demo.1", {"02-more": record.digest})
    run = store.root / "runs/demo.1"
    for label in ("01-finetune", "A_b.c-D", "02-more"):
        assert os.readlink(run / label) == f"../../trees/{record.digest}"
        assert (run / label / "config.json").read_bytes() == FILES["config.json"]
    assert os.readlink(store.root / "latest") == "runs/demo.1"
    assert list(store.root.glob("tmp/*")) == []


def test_link_run_label_moves_to_the_new_output(store):
    """Catches a view that shows an old output after a rerun."""
    first, second = publish(store), publish(store, battery.payload("finetune", 2, {}, {}), {"b": b"2"})
    for record in (first, second):
        store.link_run("demo", {"out": record.digest})
    assert (store.root / "runs/demo/out/b").read_bytes() == b"2"


def test_link_run_links_lead_somewhere_at_every_moment(store):
    """Catches unlink-then-link: a person, or a kill, in between finds no `latest`."""
    first, second = publish(store), publish(store, battery.payload("finetune", 2, {}, {}), {"b": b"2"})
    store.link_run("one", {"out": first.digest})
    store.link_run("two", {"out": first.digest})

    def look(op: str, path: Path) -> None:
        assert (store.root / "latest/out").is_dir() and (store.root / "runs/two/out").is_dir(), op

    fs.hook = look
    store.link_run("two", {"out": second.digest})
    store.link_run("one", {"out": second.digest})
    assert os.readlink(store.root / "latest") == "runs/one"


@pytest.mark.parametrize(
    "run", ["", ".", "..", "../x", "/x", "a/b", "A", "-x", ".x", "x" * 65, "a\nb", "a\n", "a\0", "ä", "~", "%2e%2e/x"]
)
def test_link_run_name_that_is_none_is_refused(store, place, run):
    """Catches run names that leave runs/ or surprise a shell."""
    before = contents(place)
    with pytest.raises(BadInput, match="run name"):
        store.link_run(run, {})
    with pytest.raises(BadInput, match="run name"):
        store.write_run_file(run, "report.html", b"")
    assert contents(place).keys() <= before.keys() | {str(store.root / f"locks/gc{name}") for name in ("", "-first")}


@pytest.mark.parametrize("label", ["", ".", "..", "a/b", "../../x", "a b", ".order", "a\n"])
def test_link_run_label_that_is_none_is_refused(store, label):
    """Catches labels that leave the run's folder."""
    with pytest.raises(BadInput):
        store.link_run("demo", {label: "a" * 64})
    with pytest.raises(BadInput):
        store.write_run_file("demo", label, b"")


def test_write_run_file_replaces_at_once(store):
    """Catches a report that can be seen half written: it is another file, not the old one rewritten."""
    store.write_run_file("demo", "report.html", b"one")
    path = store.root / "runs/demo/report.html"
    with open(path, "rb") as old:
        store.write_run_file("demo", "report.html", b"two")
        assert old.read() == b"one"
    assert path.read_bytes() == b"two"


def test_link_run_can_leave_which_run_is_the_latest(store):
    """Catches an old run that becomes the latest, which gc keeps and a report shows, because a link was added to it."""
    record = publish(store)
    for run in ("old", "new"):
        store.link_run(run, {"01": record.digest})
    before = (store.root / "runs/old/.order").read_text()
    store.link_run("old", {"02": record.digest}, latest=False)
    assert os.readlink(store.root / "latest") == "runs/new" and (store.root / "runs/old/02/config.json").is_file()
    assert (store.root / "runs/old/.order").read_text() == before


def test_published_says_when_the_record_was_written(store):
    """Catches the day of a look-up, and a day for what is not there."""
    record = publish(store)
    file = store.root / "records" / record.stage / f"{record.key}.json"
    os.utime(file, (1_800_000_000, 1_800_000_000))
    store.lookup(record.stage, record.key)
    when = store.published(record.stage, record.key)
    assert when is not None and when.timestamp() == 1_800_000_000 and when.utcoffset() == timedelta(0)
    assert store.published(record.stage, "0" * 64) is None
