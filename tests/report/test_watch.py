"""What a look at a dataset decides and says, and which run it is compared with."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from spin_core.data.row_change import Change, Counts, Part, Spread
from spin_core.job import Entry
from spin_core.report.run import sections
from spin_core.report.trained import FILE, ROWS, TOKENS, Trained, keep, last
from spin_core.report.watch import Seen, text
from spin_core.store.gc import gc
from spin_core.store.keys import payload
from spin_core.store.record import Record
from spin_core.store.store import Store
from tests.faults.store.battery import publish
from tests.places import entry
from tests.report.columns import without_tooltip
from tests.report.test_page import Tags, steps

DAY = datetime(2026, 11, 20, 6, tzinfo=UTC)
SINCE = Trained("demo-3fa9c1", DAY.isoformat(), "s", "r", "t")


def part(new: int, gone: int = 0, edited: int = 0) -> Part:
    spread = Spread({"10 %": 1, "median": 2, "90 %": 3, "99 %": 4}, {"10 %": 1, "median": 9, "90 %": 3, "99 %": 4}, 1,
                    ([1, 2], [3, 4]))  # fmt: skip
    return Part(Counts(100, 100 + new - gone, new, gone, edited), Counts(9, 9, 0, 0, 0), {"answer": spread}, (3, 4))


def seen(new: int, gone: int = 0, edited: int = 0, **more: object) -> Seen:
    about = {"least": 50, "same": True, "shards": (5, 40), **more}
    return Seen(SINCE, change=Change({"": part(new, gone, edited)}, "tokens"), **about)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("look", "held_back", "why"),
    [
        (seen(49), True, ""),
        (seen(50), False, ""),
        (seen(30, edited=19), True, ""),
        (seen(30, edited=20), False, ""),
        (seen(10, gone=90), True, ""),
        (seen(0), True, ""),
        (seen(0, least=0), False, ""),
        (seen(49, same=False), False, "other settings than demo-3fa9c1"),
        (seen(49, asked=True), False, "--redo asks for it"),
        (Seen(None, 50), False, "it is the first"),
        (Seen(None, 0), False, ""),
        (Seen(SINCE, 50, why="gone", same=True), False, "what is new is not known"),
    ],
)
def test_run_is_held_back_by_too_few_new_rows_alone(look: Seen, held_back: bool, why: str) -> None:
    """Catches a threshold that lets one row fewer through, that leaves out edited rows or counts those that went, one
    that holds back a first run, a run of other settings, a redo, or a run of which nothing is known, and a reason that
    is not said, or said where nothing was asked for."""
    assert look.held_back is held_back and bool(look.not_started) is held_back
    said = [note for note in look.notes if note.startswith("The run trains whatever runtime.min_new_rows says")]
    assert len(said) == bool(why) and all(why in note for note in said)


def test_sentences_say_what_is_new_since_when() -> None:
    """Catches figures under another's name, a date or run that is not there, and zeros that nobody asked for."""
    assert seen(120, gone=3).sentence == (
        "The dataset since demo-3fa9c1 of 2026-11-20: training rows: 120 new, 3 gone; 5 of 40 shards of prompts to "
        "generate."
    )
    assert "no row is new, gone or edited" in seen(0).sentence and text(seen(0)).count("|") == 0
    assert seen(12, least=100).not_started == (
        "Not started: 12 new rows of 100 (runtime.min_new_rows) since demo-3fa9c1 of 2026-11-20; --set "
        "runtime.min_new_rows=0 runs anyway."
    )
    assert seen(1).not_started.startswith("Not started: 1 new row of 50 ")
    why = replace(seen(3), change=None, why="rows were made otherwise then (seed: 3 → 4)")
    assert why.sentence.endswith("2026-11-20 cannot be said: rows were made otherwise then (seed: 3 → 4).")
    assert text(why).endswith("The run trains whatever runtime.min_new_rows says: what is new is not known.")


def test_tables_have_each_set_and_what_moved() -> None:
    """Catches a set's figures under another's name, a median that moved and is shown as one figure, and duplicates of
    before where those of now belong."""
    look = replace(seen(7), duplicates={"": (40, 55), "a": (1, 2)})
    assert look.change is not None
    both = replace(look, change=Change({"": part(7), "a": part(5, gone=2, edited=1)}, "tokens"))
    shown = [" ".join(line.replace("|", " ").split()) for line in text(both).splitlines()]
    assert "training rows 100 107 7 0 0" in shown and "a: training rows 100 103 5 2 1" in shown
    assert "duplicates 40 55 – – –" in shown and "a: duplicates 1 2 – – –" in shown
    assert "a: answer 1 2 → 9 3 4" in shown and "further answers to a prompt 3 4 – – –" in shown


def test_report_has_the_section_and_shows_text_as_text() -> None:
    """Catches a page without what is new, one that has a section where there is nothing to compare with, and markup of
    a name that becomes the page's own."""
    page = sections(steps(), lambda entry: None, seen=seen(7))
    words = " ".join(Tags(page).text.split())
    assert "What is new in the dataset" in words and "training rows: 7 new" in words and "2 → 9" in words
    assert page.count("<figure") == 1 and without_tooltip(page) == [] and "share of the rows" in page
    assert "What is new" not in sections(steps(), lambda entry: None, seen=Seen(None, 0))
    bad = replace(seen(7), change=None, why="<b>x</b>")
    assert "<b>x" not in sections(steps(), lambda entry: None, seen=bad)


def step(store: Store, stage: str, name: str) -> Record:
    return publish(store, payload(stage, 1, {"name": name}, {}), {"out.txt": f"{stage} {name}".encode()})


def ledger(store: Store, week: int, trains: bool = True, ends: bool = True) -> list[Entry]:
    """Of a run of that week's rows."""
    made = [("reformat", ""), ("tokenize", ""), *[("finetune", "iter 0")] * trains, *[("report", "")] * ends]
    records = [(stage, label, step(store, stage, f"week {week}")) for stage, label in made]
    return [entry(stage, label, one.key, "ran", 1.0, one.digest) for stage, label, one in records]


def test_compared_with_the_last_run_that_trained_with_these_settings(tmp_path: Path) -> None:
    """Catches a look or a failed run that becomes what the next one is compared with, another profile's run, one of
    other settings although there is one of these, the oldest for the newest, and a run without a model."""
    store = Store(tmp_path / "store")
    assert last(store, "demo", "s", "demo-aaaaaa") is None
    keep(store, "demo-aaaaaa", ledger(store, 1), "s", DAY)
    keep(store, "demo-bbbbbb", ledger(store, 2), "other", DAY + timedelta(days=7))
    keep(store, "demo-x-cccccc", ledger(store, 3), "s", DAY + timedelta(days=14))
    keep(store, "demo-aaaaaa", ledger(store, 4, trains=False), "s", DAY + timedelta(days=21))
    keep(store, "demo-aaaaaa", ledger(store, 5, ends=False), "s", DAY + timedelta(days=28))
    (store.root / "runs" / "demo-aaaaaa" / "steps.json").write_text(
        json.dumps([one.as_json() for one in ledger(store, 5, ends=False)])
    )
    found = last(store, "demo", "s", "demo-aaaaaa")
    assert found and (found.run, found.name) == ("demo-aaaaaa", "demo-aaaaaa of 2026-11-20")
    assert found.rows == step(store, "reformat", "week 1").key
    newest = last(store, "demo", "none of these", "demo-dddddd")
    assert newest and newest.run == "demo-bbbbbb" and newest.settings == "other"
    keep(store, "demo-aaaaaa", ledger(store, 6), "s", DAY + timedelta(days=35))
    found = last(store, "demo", "s", "demo-aaaaaa")
    assert found and found.at[:10] == "2026-12-25" and found.tokens == step(store, "tokenize", "week 6").key


def test_run_from_before_there_was_the_file_is_known_by_its_ledger(tmp_path: Path) -> None:
    """Catches an old store that is compared with nothing, one whose failed run counts, and settings that are taken for
    known though nothing says them."""
    store = Store(tmp_path / "store")
    keep(store, "demo-aaaaaa", ledger(store, 1), "s", DAY)
    folder = store.root / "runs" / "demo-aaaaaa"
    (folder / FILE).unlink()
    (folder / "steps.json").write_text(json.dumps([one.as_json() for one in ledger(store, 1)]))
    found = last(store, "demo", "s", "demo-aaaaaa")
    assert found and found.settings == "s" and found.rows == step(store, "reformat", "week 1").key
    other = last(store, "demo", "s", "demo-bbbbbb")
    assert other and other.run == "demo-aaaaaa" and other.settings == ""
    for broken in ([one.as_json() for one in ledger(store, 2, ends=False)], {"no": "list"}):
        (folder / "steps.json").write_text(json.dumps(broken))
        assert last(store, "demo", "s", "demo-aaaaaa") is None


@pytest.mark.parametrize(
    "change",
    [
        {"at": 5},
        {"at": "2026-11-20"},
        {"at": "\x1b[2J"},
        {"rows": "../../x"},
        {"tokens": None},
        {"more": 1},
        "cut",
        "[]",
    ],
)
def test_file_that_a_stranger_wrote_is_none(tmp_path: Path, change: dict | str) -> None:
    """Catches a damaged or planted file that ends the run, or whose text gets into a terminal or a path."""
    store = Store(tmp_path / "store")
    keep(store, "demo-aaaaaa", ledger(store, 1), "s", DAY)
    file = store.root / "runs" / "demo-aaaaaa" / FILE
    sound = json.loads(file.read_text())
    file.write_text(json.dumps({**sound, "run": "../../\x1b[2J"}))
    named = last(store, "demo", "s", "demo-aaaaaa")
    assert named and named.run == "demo-aaaaaa"
    file.write_text(json.dumps({**sound, **change}) if isinstance(change, dict) else {"cut": "{", "[]": "[]"}[change])
    assert last(store, "demo", "s", "demo-aaaaaa") is None
    (file.parent / "steps.json").write_text(json.dumps([one.as_json() for one in ledger(store, 1)]))
    known = last(store, "demo", "s", "demo-aaaaaa")
    assert known and known.rows == sound["rows"], "the ledger says it"


def test_gc_keeps_the_rows_until_a_later_run_has_trained(tmp_path: Path) -> None:
    """Catches rows that are gone when the next run is to be compared with them, because a failed run's links took the
    place of those of the run that trained; and rows that are kept for ever."""
    store = Store(tmp_path / "store")
    first, second = ledger(store, 1), ledger(store, 2, ends=False)
    keep(store, "demo-aaaaaa", first, "s", DAY)
    store.link_run("demo-aaaaaa", {f"{n:03}": one.digest for n, one in enumerate(second)})
    kept = [one.digest for one in (*first[:2], *second)]
    gc(store, keep_runs=1)
    assert all(store.tree(digest).is_dir() for digest in kept)
    assert store.tree(first[0].digest) == (store.root / "runs/demo-aaaaaa" / ROWS).resolve()
    keep(store, "demo-aaaaaa", ledger(store, 3), "s", DAY)
    gc(store, keep_runs=1)
    assert not store.tree(first[0].digest).is_dir() and not store.tree(first[1].digest).is_dir()
    assert (store.root / "runs/demo-aaaaaa" / TOKENS).resolve() == store.tree(step(store, "tokenize", "week 3").digest)
