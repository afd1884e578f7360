"""Model cards: the same bytes for the same step, a chain that goes on, and no trust in other people's cards."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from spin_core.analysis.results import ModelResults
from spin_core.errors import BadInput
from spin_core.job import Entry, Job
from spin_core.report import model_card
from spin_core.report.run_card import full_card, measures, pairs_card
from spin_core.report.run_facts import RunFacts, read_run
from spin_core.sources import hub
from spin_core.store.store import Store
from tests.places import entry as ledger_entry

BASE, ROWS, PAIRS, THETA = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)
HISTORY = [
    {"loss": 0.69314718, "rewards/margins": 0.0},
    {"loss": 0.5, "rewards/margins": 1.25, "rewards/accuracies": 1.0},
]


def written(out: Path, stage: str, source: Path, **digests) -> str:
    """The card that a step writes."""
    out.mkdir(parents=True, exist_ok=True)
    model_card.write_card(Job(out=out, scratch=out, digests=digests), stage, {"lr": 5e-7, "seed": 3}, source, HISTORY)
    return (out / "README.md").read_text()


def test_card_same_step_elsewhere_same_bytes(tmp_path):
    """Catches: a path, a clock or an order of a dictionary in the card, which would give each run other keys."""
    first = written(tmp_path / "a", "finetune", tmp_path / "theta", model=BASE, pairs=[PAIRS], logps=[ROWS])
    again = written(tmp_path / "b" / "c", "finetune", tmp_path / "x", logps=[ROWS], pairs=[PAIRS], model=BASE)
    assert first == again and str(tmp_path) not in first


def test_card_chain_goes_on_through_the_store(tmp_path):
    """Catches: an iteration counted from the run, not from the base model, and a step that forgets those before it."""
    written(tmp_path / THETA, "sft", tmp_path / "base", model=BASE, rows=ROWS)
    written(tmp_path / PAIRS, "finetune", tmp_path / THETA, model=THETA, pairs=[ROWS])
    text = written(tmp_path / "end", "finetune", tmp_path / PAIRS, model=PAIRS, pairs=[ROWS, BASE])
    data = ModelCard(text).data.to_dict()
    chain = data["spinloop"]
    assert data["library_name"] == "transformers" and data["tags"] == ["spinloop", "spin"]
    assert chain["base"] == BASE
    assert [(s["stage"], s.get("iteration")) for s in chain["steps"]] == [
        ("sft", None),
        ("finetune", 1),
        ("finetune", 2),
    ]
    assert chain["steps"][2]["inputs"] == {"model": PAIRS, "pairs": [ROWS, BASE]}
    assert chain["steps"][2]["settings"] == {"lr": 5e-7, "seed": 3}
    assert chain["steps"][2]["result"]["loss/last"] == 0.5
    assert "# SPIN iteration 2" in text and "0.693147 → 0.5" in text


@pytest.mark.parametrize(
    "name, text",
    [
        ("not-its-digest", None),
        (THETA, "# no front matter"),
        (THETA, "---\n[broken\n---\n"),
        (THETA, "---\nspinloop: {format: 1, base: x, steps: []}\n---\n"),
        (THETA, "---\nspinloop: {format: 2, base: " + BASE + ", steps: []}\n---\n"),
        (THETA, "---\nspinloop: {format: 1, base: " + BASE + ", steps: [{stage: other}]}\n---\n"),
        (THETA, "---\nspinloop: !!python/object/apply:os.system ['true']\n---\n"),
        (THETA, "---\n" + "x: y\n" * 300_000 + "---\n"),
    ],
)
def test_card_foreign_readme_is_not_believed(tmp_path, name, text):
    """Catches: a chain from a README that is in no digest (two users of one key would get two models), and one that
    breaks the training or runs code."""
    folder = tmp_path / name
    written(folder, "finetune", tmp_path / "x", model=BASE, pairs=[PAIRS])
    if text is not None:
        (folder / "README.md").write_text(text)
    assert model_card.read_chain(folder, THETA) == {"format": 1, "base": THETA, "steps": []}


def test_card_chain_of_an_own_tree_is_read(tmp_path):
    """Catches: a reader that believes nothing, with which the test above would always pass."""
    written(tmp_path / THETA, "finetune", tmp_path / "x", model=BASE, pairs=[PAIRS])
    assert model_card.iterations(model_card.read_chain(tmp_path / THETA, THETA)) == 1


def made_run(tmp_path: Path, rows: list[dict], metrics: dict, **more: dict) -> RunFacts:
    """A run of one evaluate step and one finetune step, laid out by hand; `more`: the JSON file of further stages."""
    store = Store(tmp_path / "store")

    def publish(stage: str, label: str, files: dict[str, str]) -> Entry:
        tree = store.new_tree()
        for name, text in files.items():
            (tree / name).write_text(text)
        payload = {"store": 1, "stage": stage, "version": 1, "config": {}, "inputs": {}}
        record = store.publish(payload, tree, {"provenance": {"versions": {"torch": "9.9"}, "commit": "e" * 40}})
        return ledger_entry(stage, label, record.key, "ran", 1.0, record.digest)

    text = written(tmp_path / "made", "finetune", tmp_path / "x", model=BASE, pairs=[PAIRS])
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    steps = [
        publish("finetune", "iter 0", {"README.md": text, "config.json": "{}"}),
        publish("evaluate", "θ_1", {"metrics.json": json.dumps(metrics), "rows.jsonl": lines}),
    ]
    for stage, content in more.items():
        label = "iter 0" if stage == "gate" else ""
        file = "decision.json" if stage == "gate" else f"{stage}.json"
        steps.append(publish(stage, label, {file: json.dumps(content)}))
    return RunFacts(store, "made-abc123", steps, [])


def test_card_begins_with_what_the_run_is_judged_by(tmp_path):
    """Catches: a card that puts exact match or NLL first where the gate goes by another metric, and one that does not
    say what θ_0 and SFT have beside it; and a run's sentence that is markup on the hub."""
    metrics = {"exact_match/greedy": 0.5, "nll/real": 1.5, "truncated/greedy": 0.1, "repetition/greedy": 0.088}
    decision = {"metric": "repetition/greedy", "best": 1, "models": 2, "outcome": "continue"}
    said = "The share of their 4-grams that greedy answers repeat fell from 20.2 % to 8.8 %; [x](y) SFT 10.3 %."
    run = made_run(tmp_path / "a", [], metrics, gate=decision, report={"sentence": said})
    names = [one.metric for one in measures(run, 1)]
    assert names == ["repetition/greedy", "exact_match/greedy", "nll/real", "truncated/greedy"]
    text = full_card(run, 1)
    shown = said.replace("[", "\\[").replace("]", "\\]")
    assert f"## Held-out figures\n\nOf the whole run: {shown}\n\n| measure |" in text
    assert "Of the whole run" not in full_card(made_run(tmp_path / "b", [], metrics, gate=decision), 1)


def test_card_of_a_run_says_no_more_than_it_knows(tmp_path):
    """Catches: a figure that is not finite, an interval without rows, a decision without gates, a made-up hub id."""
    run = made_run(tmp_path, [], {"nll/real": 1.5, "exact_match/greedy": None, "spin/margin": float("nan")})
    text = full_card(run, 1)
    data = ModelCard(text).data.to_dict()
    assert (
        "| nats per token of real answers | 1.5 | – | – |" in text and "nan" not in text and "exact match" not in text
    )
    assert "## Decision" not in text and "base_model" not in data and "datasets" not in data
    assert text == full_card(run, 1) and "torch 9.9" in text and run.models[1].digest in text


def test_card_of_a_mix_has_each_sets_figures_and_calls_them_no_single_dataset(tmp_path):
    """Catches: figures over all sets published as those of the first dataset, and sets that the card leaves out."""
    rows = [{"id": f"{i}", "nll": 1.0 + i, "tokens": 2, "source": "ab"[i % 2]} for i in range(6)]
    run = made_run(tmp_path, rows, {"nll/real": 3.5})
    known = {"kind": "dataset", "commit": "c" * 40, "digest": "d" * 64, "split": ""}
    sources = [{**known, "hub": name} for name in ("acme/a", "acme/b")]
    mixed = ledger_entry("reformat", "", "", "ran", summary={"sources": {"a": {}, "b": {}}})
    run = RunFacts(run.store, run.name, [mixed, *run.steps], sources)
    text = full_card(run, 1)
    assert "| nats per token of real answers, rows of a | 3 | 0.7" in text and "rows of b | 4 |" in text
    kinds = {one.dataset_type for one in ModelCard(text).data.eval_results}
    assert kinds == {"held-out", "a", "b"} and ModelCard(text).data.datasets == ["acme/a", "acme/b"]
    pairs = {0: ledger_entry("gather", "iter 0", "k" * 64, "ran", 1.0, "d" * 64, summary={"train_pairs": 7})}
    assert "`source`, which set of the mix a row is of: a, b." in pairs_card(run, pairs, "acme/pairs", "acme/tiny")
    assert "`source`" not in pairs_card(RunFacts(run.store, run.name, [], []), pairs, "acme/pairs", "acme/tiny")


def test_run_that_did_not_end_has_no_best_model(tmp_path):
    """Catches: the last gate of a part of the steps taken for the run's, in a push and in the card; and a report step
    that has no output counted as the end."""
    run = made_run(tmp_path, [], {"nll/real": 1.5})
    part = RunFacts(run.store, run.name, [*run.steps, replace(run.steps[0], stage="report", digest="")], [])
    for which in ("best", "last"):
        with pytest.raises(BadInput, match=f"{which}: the run did not end; run it again, or name a model: --model θ_1"):
            part.choose(which)
    assert part.choose("θ_1") == part.choose("1") == 1
    facts = RunFacts(run.store, run.name, [*run.steps, replace(run.steps[0], stage="report", label="")], [])
    assert facts.choose("best") == facts.choose("last") == 1


def test_pairs_card_says_where_imported_pairs_are_from(tmp_path):
    """Catches: imported pairs whose answers the card ascribes to a model of this run; and a path of this machine."""
    run = made_run(tmp_path, [], {})
    made = {**run.store.record("finetune", run.steps[0].key).payload, "stage": "import_pairs"}
    steps, commit = [], f"acme/SPIN_iter0@{'c' * 40}"
    for t, facts in enumerate(({"sources": {"source": [commit]}}, {})):
        tree = run.store.new_tree()
        (tree / "train").write_text(f"{t}")
        record = run.store.publish({**made, "version": t + 1}, tree, facts)
        steps.append(ledger_entry("import_pairs", f"iter {t}, from x", record.key, "ran", 1.0, record.digest))
    steps.append(ledger_entry("gather", "iter 2", "k" * 64, "ran", 1.0, "d" * 64, summary={"train_pairs": 7}))
    part = RunFacts(run.store, run.name, steps, [])
    assert list(part.pairs) == [0, 1, 2]
    text = pairs_card(part, part.pairs, "acme/pairs", "acme/tiny")
    assert f"| iter0 | imported from {commit} |" in text and "| iter1 | imported from a local copy |" in text
    assert "| iter2 | θ_2 | 7 |" in text and str(tmp_path) not in text


def test_run_laid_out_by_an_older_version_is_one_sentence(tmp_path):
    """Catches: a traceback, or a run without models, where steps.json does not say what its steps were for."""
    run = made_run(tmp_path, [], {})
    entries = [entry.as_json() for entry in run.steps]
    run.store.write_run_file("made", "steps.json", json.dumps(entries).encode())
    assert list(read_run(run.store, "made").models) == [1]
    for entry in entries:
        del entry["place"]
    run.store.write_run_file("made", "steps.json", json.dumps(entries).encode())
    with pytest.raises(
        BadInput, match=r"older version of spinloop.*run the same profile again: all its steps are cached"
    ):
        read_run(run.store, "made")


def test_card_interval_of_the_likelihood_covers_the_truth(tmp_path):
    """Catches: an interval of the rows' plain mean, or of another spread: nats per token weighs rows by their tokens.
    300 draws of 80 rows; the true value is that of the population."""
    draw, hits = random.Random(5), 0
    population = [(n, draw.expovariate(2.0 / n) + 0.2) for n in (draw.randint(1, 60) for _ in range(20_000))]
    truth = sum(n * nll for n, nll in population) / sum(n for n, _ in population)
    for _ in range(300):
        rows = [{"tokens": n, "nll": nll} for n, nll in draw.choices(population, k=80)]
        value = sum(r["tokens"] * r["nll"] for r in rows) / sum(r["tokens"] for r in rows)
        one = _likelihood(rows, value)
        hits += one[0] <= truth <= one[1]
    assert 0.9 <= hits / 300 <= 0.985, hits / 300
    assert [one.metric for one in measures(made_run(tmp_path, [], {"nll/real": 1.0}), 1)] == ["nll/real"]


def _likelihood(rows: list[dict], value: float) -> tuple[float, float]:
    from spin_core.report.run_card import interval

    model = ModelResults("θ_1", "iteration", 0, answers={str(i): row for i, row in enumerate(rows)})
    low, high, count = interval("nll/real", value, model)
    assert count == len(rows) and low is not None and high is not None
    return low, high


@pytest.mark.parametrize("token", ["hf_abcdefghij", "plain-secret-1", "hf_abcd/+=é1234", "with space"])
def test_masked_token_is_in_no_spelling(token, monkeypatch):
    """Catches: a token that is masked as it is, but not as a client quotes the header that it cannot send."""
    monkeypatch.setenv("HF_TOKEN", f" {token}\n")
    for text in (token, repr(token.encode()), ascii(token), f"Illegal header value {f'Bearer {token}'.encode()!r}"):
        message = hub.masked(f"Error: {text}.")
        assert hub.HIDDEN in message and message.startswith("Error: ") and message.endswith(".")
        assert token.partition("é")[0] not in message and "1234" not in message
    monkeypatch.delenv("HF_TOKEN")
    assert hub.masked(f"x {token} y", token) == f"x {hub.HIDDEN} y"
    assert hub.masked("nothing to hide: hf.co, shf_1, half_life") == "nothing to hide: hf.co, shf_1, half_life"
