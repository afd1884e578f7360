"""docs/caching.md: its key is one, its output is what the commands print, and its table is what a plan says."""

from __future__ import annotations

import json
import re

import pytest

from tests.architecture.scan import ROOT
from tests.docs import blocks

PAGE = "docs/caching.md"
TEXT = (ROOT / PAGE).read_text(encoding="utf-8")
CHANGES = re.findall(r"(?m)^\| `([a-z_.]+=[^`]+)` \| (?:`(\w+)`|none)(?: of iteration (\d))? \|", TEXT)
KEY, LONG, STAGE = r"[0-9a-f]{6}", r"[0-9a-f]{12}", r"[a-z_]+(?:\[[^\]]+\])?"
SHAPES = {
    "ls": re.compile(
        rf"key +stage +step +size +time +output|{LONG}  [a-z_]+ .*  +\d+\.\d\d [kM]B  +(\d+ min )?[\d.]+ s  {LONG}"
    ),
    "plan": re.compile(
        rf"cached     {STAGE} +({KEY}|[\d,]+ shards, [\d,]+ rows)( \d+\.\d s saved)?"
        rf"|would run  {STAGE} +([\d,]+ of [\d,]+ shards would run, [\d,]+ of [\d,]+ rows: )?"
        rf"([a-z_.]+: .+ → .+|reads what {STAGE} will write|input \w+ changed.*|never ran before)"
    ),
    "explain": re.compile(rf"[a-z_]+ {LONG}: differs from {LONG} in .+|[a-z_]+ {LONG}: the only one .+"),
}
"""Lines of `store ls`, of the table of `plan`, and of `store explain`."""


def printed(spinloop, *arguments: object) -> list[str]:
    code, out, err = spinloop(*arguments)
    assert code == 0, err
    return out.splitlines()


def payload_of_the_page() -> tuple[dict, dict]:
    """The payload that the page has, and the names that its Python leaves."""
    names: dict = {}
    exec(next(block.text for block in blocks.of("python") if block.page == PAGE), names)
    return names["payload"], names


def test_payload_of_the_page_is_what_a_key_is_made_of(spinloop, finished):
    """Catches a page whose payload has a name more or less than the product's, or is hashed otherwise."""
    shown, names = payload_of_the_page()
    key = printed(spinloop, "store", "ls", "finetune", "--store", finished[0])[1][:12]
    record = json.loads("\n".join(printed(spinloop, "store", "show", key, "--store", finished[0])))
    real = record["payload"]
    assert names["sha256"](real) == record["key"] and names["sha256"](record["files"]) == record["digest"]
    assert [*map(set, (real, real["config"], real["inputs"]))] == [*map(set, (shown, shown["config"], shown["inputs"]))]
    more = set(shown["config"]["finetune"]) ^ set(real["config"]["finetune"])
    assert more == {"sft_weight"}, "a setting that came later, which the demo has and the tiny profile leaves"
    assert (shown["store"], shown["stage"]) == (real["store"], real["stage"])
    assert shown["version"] == real["version"], "the demo's record is of another VERSION; make the page's anew"


def test_output_on_the_page_has_the_shape_of_the_commands(spinloop, finished, tiny):
    """Catches output that was written by hand, or that the commands print otherwise by now."""
    store = ("--store", finished[0])
    key = printed(spinloop, "store", "ls", "finetune", *store)[1][:12]
    plan = printed(spinloop, "plan", tiny, *store, "--set", "finetune.beta=0.5")
    real = {
        "ls": printed(spinloop, "store", "ls", *store),
        "plan": [line for line in plan if line.startswith(("cached  ", "would run  "))],
        "explain": printed(spinloop, "store", "explain", key, *store),
    }
    assert len(real["ls"]) > 10 and len(real["plan"]) > 10
    shown = [block for block in blocks.of("text") if block.page == PAGE]
    for (kind, shape), block in zip(SHAPES.items(), shown, strict=True):
        for line in [*real[kind], *block.text.splitlines()]:
            assert shape.fullmatch(line), f"{kind}: {line}"


@pytest.mark.parametrize(("setting", "stage", "iteration"), CHANGES)
def test_change_of_the_table_invalidates_what_the_page_says(setting, stage, iteration, spinloop, finished, tiny):
    """Catches a setting that is in the key of an earlier step, or in none."""
    arguments = ("plan", tiny, "--store", finished[0], "--json", "--set", setting)
    entries = json.loads(printed(spinloop, *arguments)[-1])
    missing = [entry for entry in entries if entry["state"] != "cached"]
    first = next(((entry["stage"], entry["place"].get("iteration")) for entry in missing), None)
    assert first == ((stage, int(iteration) if iteration else first[1]) if stage else None)


def test_table_is_read():
    """Catches a table that no row is read of, with which the test above would check nothing."""
    assert len(CHANGES) == TEXT.count("\n| `") == 11
