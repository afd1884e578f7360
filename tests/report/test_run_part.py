"""What only a run knows: costs, lineage, software, and what differs from the paper's preset."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spin_core.analysis.costs import costs
from spin_core.analysis.format import count_text, hours_text, time_text
from spin_core.analysis.profile_diff import differences, preset, sentence
from spin_core.config.runtime import Runtime
from spin_core.errors import BadInput
from spin_core.report.run import sections
from spin_core.runtime import gpus
from spin_core.store.record import Record
from tests.places import entry as ledger_entry
from tests.report.test_page import Tags, steps


def step(stage: str, label: str, state: str, seconds: float, gpus: int = 0, shared: int = 1, **summary) -> tuple:
    """A ledger entry and the facts of its record."""
    device = {"gpus": gpus, "name": "NVIDIA H100", "shared": shared} if gpus else {"gpus": 0}
    return ledger_entry(stage, label, "k", state, seconds, "d", summary=summary), {"device": device}


def total(made: dict, part: str, name: str) -> float:
    return made["total"][part][name]


def test_costs_keep_used_and_saved_apart_and_share_a_gpu() -> None:
    """Catches GPU hours of cached steps among those used, a GPU shared by two steps counted twice, GPU hours on CPU,
    and tokens of cached shards among those of this run."""
    known = [
        step("generate", "iter 0, shard 1/2", "ran", 3600, gpus=2, shared=2, tokens=500, answers=9),
        step("generate", "iter 0, shard 2/2", "Cached", 7200, gpus=4, tokens=700, answers=9),
        step("gather", "iter 0", "ran", 1800),
    ]
    made = costs([entry for entry, _ in known], lambda entry: next(f for e, f in known if e is entry))
    assert total(made, "used", "gpu_hours") == 1.0 and total(made, "saved", "gpu_hours") == 8.0
    assert total(made, "used", "cpu_hours") == 0.5 and total(made, "saved", "cpu_hours") == 0
    assert total(made, "used", "generated") == 500 and total(made, "saved", "generated") == 700
    assert total(made, "used", "seconds") == 5400 and made["gpus"] == ["NVIDIA H100"]
    assert [line["stage"] for line in made["lines"]] == ["generate", "gather"]


def test_trained_tokens_count_every_pass() -> None:
    """Catches tokens of one pass for a training of two, and pairs counted where tokens are counted."""
    known = [
        step("score", "iter 0, pairs 0", "ran", 1, tokens=1000, pairs=50),
        step("finetune", "iter 0", "ran", 1, pairs=40, steps=20),
        step("sft", "θ_0", "ran", 1, rows=40, steps=15, tokens=400),
    ]
    settings = {"finetune": {"global_batch": 4}}, {"sft": {"global_batch": 8}}
    known[1][1]["config"], known[2][1]["config"] = settings
    made = costs([entry for entry, _ in known], lambda entry: next(f for e, f in known if e is entry))
    lines = {line["stage"]: line["used"] for line in made["lines"]}
    assert lines["finetune"]["trained"] == 40 * 20 * 2 and lines["sft"]["trained"] == 400 * 3
    assert lines["score"] == lines["score"] | {"scored": 1000, "trained": 0}


def test_old_records_without_devices_have_time_only() -> None:
    """Catches a crash, or made-up GPU hours, for steps that an older spinloop computed."""
    made = costs(steps(), lambda entry: {})
    assert total(made, "saved", "seconds") == 4840.4 and not total(made, "saved", "gpu_hours")
    assert not total(made, "saved", "cpu_hours") and costs([], lambda entry: {})["lines"] == []


@pytest.mark.parametrize(
    ("stage", "runtime", "there", "share", "held"),
    [
        ("finetune", {}, ("0", "1"), 1, {"gpus": 1, "shared": 1}),
        ("generate", {"tensor_parallel": 2}, ("0", "1"), 2, {"gpus": 2, "shared": 2}),
        ("generate", {"workers": 4}, ("0", "1"), 2, {"gpus": 1, "shared": 4}),
        ("evaluate", {"workers": 3, "device": "cuda:1"}, ("0", "1"), 1, {"gpus": 1, "shared": 3}),
        ("finetune", {"device": "cpu"}, ("0",), 1, {"gpus": 0}),
        ("gather", {}, ("0",), 1, {"gpus": 0}),
        ("finetune", {}, (), 1, {"gpus": 0}),
    ],
)
def test_record_has_the_gpus_that_its_step_held(monkeypatch, stage, runtime, there, share, held) -> None:
    """Catches all GPUs of a machine counted for a step that had one, GPU hours for gather or for device cpu, and two
    shards in one engine that each count all of the GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(there))
    gpus._visible.cache_clear()
    held_gpus = gpus.held(stage, Runtime(**runtime), share)
    gpus._visible.cache_clear()
    assert {name: value for name, value in held_gpus.items() if name != "name"} == held


def test_cost_section_shows_what_was_cached() -> None:
    """Catches "saved" for what an earlier try of the same run computed, cached figures that include what ran
    now, and key or label columns swapped."""
    text = " ".join(Tags(sections(steps(), lambda entry: None)).text.split())
    assert "2 of 3 steps were cached: 1 h 21 min that were not computed again (an earlier try of this run" in text
    assert "may have computed them); the others took 2.5 s." in text and "saved" not in text
    assert "iter 0, shard 1/2 generate Cached 1 h 0 min abababababab cdcdcdcdcdcd" in text
    assert "1 of 1 steps" not in text
    ran = " ".join(Tags(sections(steps()[2:], lambda entry: None)).text.split())
    assert "0 of 1 steps were cached; the others took 2.5 s." in ran
    assert "0 of 0 steps were cached." in Tags(sections([], lambda entry: None)).text


def record(stage: str, digest: str, inputs: dict, **facts) -> Record:
    return Record(stage, "k", {"stage": stage, "config": {}, "inputs": inputs}, digest, [], facts, Path())


def test_lineage_leads_from_an_answer_to_the_dataset() -> None:
    """Catches links that lead nowhere, a model without what it was made of, and a commit that is not shown."""
    names = {"data": "a" * 64, "rows": "b" * 64, "theta": "c" * 64, "model": "d" * 64, "answers": "e" * 64}
    names["tokens"] = "f" * 64
    made = [
        ("reformat", "", names["rows"], {"train": names["data"]}),
        ("tokenize", "", names["tokens"], {"tokenizer": "0" * 64, "rows": names["rows"]}),
        ("sft", "θ_0", names["theta"], {"model": names["model"], "tokens": names["tokens"]}),
        ("evaluate", "θ_0", names["answers"], {"model": names["theta"], **{n: names[n] for n in ("rows", "tokens")}}),
    ]
    entries = [ledger_entry(stage, label, "k", "ran", 1.0, digest) for stage, label, digest, _ in made]
    facts = {"provenance": {"versions": {"torch": "2.9"}, "python": "3.11.7", "commit": "f" * 40, "dirty": True}}
    records = {digest: record(stage, digest, inputs, **facts) for stage, _, digest, inputs in made}
    hub = [{"kind": "dataset", "hub": "org/name", "commit": "9" * 40, "digest": names["data"]}]
    html = sections(entries, lambda entry: records[entry.digest], hub)
    links = re.findall(r'href="#([^"]*)"', html)
    assert links and set(links) <= set(re.findall(r'id="([^"]*)"', html))
    drawn = [digest for name, digest in names.items() if name != "tokens"]
    part = {digest: html[html.index(f'id="made-{digest[:12]}"') :] for digest in drawn}
    assert f'href="#made-{"c" * 12}"' in part[names["answers"]].partition("</li>")[0]
    assert f'href="#made-{"d" * 12}"' in part[names["theta"]].partition("</li>")[0]
    assert f'href="#made-{"b" * 12}"' in part[names["theta"]].partition("</li>")[0], "the rows, read as tokens"
    assert f"org/name@{'9' * 40}" in part[names["data"]].partition("</li>")[0]
    text = " ".join(Tags(html).text.split())
    assert f"spinloop's commit {'f' * 12} and changes not in it Python 3.11.7 torch 2.9" in text


def test_software_of_steps_that_differ_is_listed_with_counts() -> None:
    """Catches a page with the versions of one step only, where cached steps were computed with others."""
    entries = [ledger_entry("gather", f"iter {i}", str(i), "ran", 1.0, "d") for i in range(3)]
    records = [record("gather", "d", {}, provenance={"versions": {"torch": f"2.{min(i, 1)}"}}) for i in range(3)]
    text = Tags(sections(entries, lambda entry: records[int(entry.key)])).text
    assert "2.0 (1 step), 2.1 (2 steps)" in text


def test_software_names_the_harness() -> None:
    """Catches a page that does not say which lm-evaluation-harness the numbers are of."""
    entry = ledger_entry("harness", "θ_0", "k", "ran", 1.0, "d")
    of_harness = record("harness", "d", {}, summary={"average": 0.5, "lm_eval": "0.4.13"})
    assert "lm-evaluation-harness 0.4.13" in " ".join(Tags(sections([entry], lambda entry: of_harness)).text.split())


def test_page_names_text_of_the_dataset_that_no_row_has() -> None:
    """Catches a report in which a column that was not read is nowhere, and one of hostile names."""
    entry = ledger_entry("reformat", "", "k", "Cached", 1.0, "d")
    made = record("reformat", "d", {}, summary={"train_rows": 9, "unused": ["source: <b>sql</b> (9 records)."]})
    html = sections([entry], lambda entry: made)
    assert "Text that no row has" in html and "<b>sql" not in html
    assert "source: <b>sql</b> (9 records)." in Tags(html).text
    plain = record("reformat", "d", {}, summary={"train_rows": 9})
    assert "Text that no row has" not in sections([entry], lambda entry: plain)


def test_page_names_answers_that_are_in_no_pair() -> None:
    """Catches a run page on which two of three sampled answers are nowhere."""
    entry = ledger_entry("gather", "iter 0", "k", "Cached", 1.0, "d")
    said = "6 answers to 3 prompts are in no pair: <b>one of each."
    made = record("gather", "d", {}, summary={"train_pairs": 3, "left_out": [said]})
    html = sections([entry], lambda entry: made)
    assert "Answers that are in no pair" in html and said in Tags(html).text and "<b>one" not in html
    plain = record("gather", "d", {}, summary={"train_pairs": 3})
    assert "Answers that are in no pair" not in sections([entry], lambda entry: plain)


# --- the reproduction ledger ------------------------------------------------------------


def changed(**parts: dict) -> dict:
    """The paper's preset with changes, as a report's record holds a profile: sorted, runtime gone."""
    made = preset()
    del made["runtime"]
    for section, fields in parts.items():
        made[section] = made[section] | fields if isinstance(fields, dict) else fields
    return dict(sorted((made | {"name": "mine"}).items()))


def test_ledger_of_the_preset_itself_is_empty() -> None:
    """Catches names, runtime or the order of fields counted as differences."""
    assert differences(changed(), preset()) == []
    assert sentence([], "zephyr-7b") == "No setting differs from the preset zephyr-7b."


def test_ledger_lists_every_difference_in_the_profiles_order() -> None:
    """Catches the first difference by alphabet or of a nested section, and a setting that is missing in the list."""
    made = changed(finetune={"lr": 1e-6, "beta": 0.2}, dataset={"limit": 100, "path": "(local)"}, seed=1)
    made["overrides"] = {
        "10": {"finetune": {"lr": 1e-9}},
        "2": {"finetune": {"lr": 1e-7}},
        "3": {"finetune": {"lr": 1e-7, "beta": 0.5}},
    }
    differing = differences(made, preset())
    assert [one.setting for one in differing] == [
        "seed", "dataset.path", "dataset.limit", "finetune.beta", "finetune.lr", "overrides.3.finetune.beta",
        "overrides.10",
    ]  # fmt: skip
    assert (differing[3].here, differing[3].there) == ("0.2", "0.1") and differing[1].here == "(local)"
    assert sentence(differing, "zephyr-7b") == (
        "The first setting that differs from the preset zephyr-7b is seed: 1 here, 42 there, and 6 more settings "
        "differ."
    )


def test_ledger_section_of_one_side_is_one_difference() -> None:
    """Catches a crash on `sft:` that the preset lacks, and a field listed twice."""
    made = changed(sft={"lr": 1e-3}) if isinstance(preset()["sft"], dict) else changed() | {"sft": {"lr": 1e-3}}
    (one,) = differences(made, preset())
    assert one.setting == "sft" and one.there == "not set" and one.here.startswith("lr: 0.001, ")


def test_ledger_defaults_left_out_of_a_record_are_no_difference() -> None:
    """Catches fields that a record leaves out while they hold their default, shown as "not set"."""
    made = changed()
    del made["finetune"]["sft_weight"], made["finetune"]["length_normalised"]
    assert differences(made, preset()) == []


def test_ledger_of_another_version_still_lists() -> None:
    """Catches a report that fails on a profile with a field that this version does not know."""
    made = changed() | {"newer": {"x": 1}}
    assert [one.setting for one in differences(made, preset())] == ["newer"]
    with pytest.raises(BadInput):
        preset("nothing-of-this-name")


def test_ledger_stands_in_the_page() -> None:
    """Catches a ledger against nothing: the record's profile is what is compared."""
    made = record("report", "d", {})
    made.payload["config"] = {"profile": changed(seed=7)}
    text = " ".join(Tags(sections([steps()[2]], lambda entry: made)).text.split())
    assert "The first setting that differs from the preset zephyr-7b is seed: 7 here, 42 there." in text


def test_figures_of_costs_read_well() -> None:
    """Catches 0.00 hours for what did run, and 60 minutes for an hour."""
    assert [hours_text(hours) for hours in (0, 0.001, 1.5, 1234.5)] == ["0.00", "< 0.01", "1.50", "1,234"]
    assert [count_text(n) for n in (0, 9999, 12345, 4.5e6, 2e9)] == ["0", "9,999", "12.3 k", "4.5 M", "2.0 G"]
    assert [time_text(s) for s in (None, 2.5, 3599.7, 7260)] == ["–", "2.5 s", "1 h 0 min", "2 h 1 min"]
