"""A mix of sets in keys and reports: each set by its content, and no path of this machine."""

from __future__ import annotations

import json
from pathlib import Path

from flows.spin import sources
from spin_core.config.profile import parse
from spin_core.runtime.child import Children
from spin_core.store.keys import key_of
from spin_core.store.store import Store
from tasks.reformat import reformat
from tasks.report import Table, report
from tasks.runner.planning import Planner
from tasks.runner.run import Run


def described(place: Path, *sets: dict, **dataset) -> tuple[dict, dict]:
    """What reformat's key is made of, and the profile as the report has it, with `place` for the sets' folder."""
    place.mkdir(exist_ok=True)
    for name in ("a", "b", "held"):
        (place / f"{name}.jsonl").write_text(json.dumps({"prompt": name, "response": name}) + "\n")
    config = parse({"model": {"path": "builtin:tiny-llama"}, "dataset": {"sets": list(sets), **dataset}}, "p")
    run = Run(config, Store(place / "store"), Children(0), place, Planner())
    step, inputs = reformat.__wrapped__(run, sources(run)[0])
    return step.payload(inputs), report.__wrapped__(run, Table())[0].config.profile


A, B = {"path": "a.jsonl"}, {"path": "b.jsonl", "test_path": "held.jsonl"}


def test_each_set_is_an_input_by_content(tmp_path):
    """Catches: a set whose content is not in the key, or its place is; and a set that is another input once a second
    one is there."""
    payload, profile = described(tmp_path / "here", A, B)
    elsewhere, _ = described(tmp_path / "there", {"path": str(tmp_path / "there" / "a.jsonl")}, B)
    assert key_of(payload) == key_of(elsewhere)
    assert [*payload["inputs"]] == ["source_a", "source_b", "test_source_b"]
    assert len(set(payload["inputs"].values())) == 3 and str(tmp_path) not in json.dumps([payload, profile])
    assert [one["path"] for one in profile["dataset"]["sets"]] == ["(local)"] * 2
    assert profile["dataset"]["sets"][1]["test_path"] == "(local)"
    more, _ = described(tmp_path / "here", A, B, {"path": "held.jsonl"})
    assert more["inputs"].items() > payload["inputs"].items()


def test_what_a_set_gives_is_in_the_key(tmp_path):
    """Catches: a weight, name or limit of one set that changes rows under the old key."""
    ways = [
        (A, B), (B, A), ({**A, "limit": 1}, B), ({**A, "name": "c"}, B), ({**A, "turns": "all"}, B),
        ({**A, "weight": 1}, {**B, "weight": 1}), ({**A, "weight": 2}, {**B, "weight": 1}),
    ]  # fmt: skip
    keys = {key_of(described(tmp_path / "here", *sets)[0]) for sets in ways}
    assert len(keys) == len(ways)
