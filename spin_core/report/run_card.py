"""The cards of what a run made. Of a model: the artifact's own card, and what only the run knows: names and commits of
what it started from, figures on held-out rows and by the harness with 95 % intervals, the gate's decision, and the step
behind every digest. Of a pair set as a dataset repository: one configuration for each iteration, in the reference's
record.

Is not: part of any key or artifact. The model's is written into runs/<name>/ for people, and both go to the hub with a
push; the same run gives the same text. Local paths are not in it, nor figures that are missing or not finite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from spin_core.analysis import statistics
from spin_core.analysis.by_source import by_source
from spin_core.analysis.results import ModelResults, number, read_model
from spin_core.analysis.statistics import Z95
from spin_core.analysis.summary import model_row
from spin_core.config.generate import Decoding
from spin_core.config.stage_table import makers
from spin_core.data.rows import TEST_FILE, TRAIN_FILE
from spin_core.job import Entry
from spin_core.report import model_card
from spin_core.report.run_facts import RunFacts, hub_ids, read_run
from spin_core.store.store import Store

NAME = "model-card.md"
Share = Literal["truncated", "empty", "loops", "repetition", "distinct_runs", "ratio"]
MEASURES = {  # of evaluate: what they are called on a card
    "exact_match/greedy": "exact match, greedy answers",
    "exact_match/sampled": "exact match, answers drawn at temperature 1",
    "spin/accuracy": "real answer preferred to the opponent's",
    "nll/real": "nats per token of real answers",
    "spin/margin": "margin over the opponent",
}
OF_ANSWERS: dict[Share, str] = {  # of evaluate, of the answers drawn in each way
    "truncated": "answers that never end (cut at the cap)",
    "empty": "empty answers",
    "loops": "answers that loop",
    "repetition": "repeated 4-grams in an answer",
    "distinct_runs": "distinct runs of three words over all answers",
    "ratio": "length of an answer to that of the real one",
}


def write(store: Store, name: str) -> None:
    """Write runs/<name>/model-card.md, of the run's best model, or nothing where it has made none or did not end.

    Raises BadInput, StoreError, ValueError for what of the run cannot be read or shown.
    """
    run = read_run(store, name)
    if run.ended and run.models and run.best() in run.models:
        store.write_run_file(name, NAME, full_card(run, run.best()).encode())


def full_card(run: RunFacts, k: int, repo: str = "") -> str:
    """The card of θ_k. `repo`: the hub id it will have, for the snippet that loads it.

    Raises ValueError for metadata that the hub does not take.
    """
    from huggingface_hub import ModelCardData

    made = run.models[k]
    chain = model_card.parse(run.store.tree(made.digest) / model_card.FILE).get("spinloop") or {}
    metrics, generate = measures(run, k), _generate(run, k)
    models, data = hub_ids(run, "model"), hub_ids(run, "dataset")
    metadata = ModelCardData(
        base_model=models[0] if models else None,
        datasets=data or None,
        model_name=f"{run.name} θ_{k}",
        eval_results=[one.result(data) for one in metrics] or None,
        ignore_metadata_errors=False,
        **model_card.HUB,
        spinloop={**chain, "run": run.name, "model": made.digest},
    ).to_dict()
    metadata.pop("model_name", None)
    decisions = [run.read(gate, "decision.json") for gate in run.gates]
    best = run.decision.get("best")
    lineage = [step for step in run.steps if step.digest and step.stage != "report" and _leads_to(step, k)]
    return model_card.front(metadata) + model_card.filled(
        "run_card.md.j2",
        run=run,
        k=k,
        repo=repo,
        chain=chain,
        title=model_card.title(chain or {"steps": [{"stage": "finetune"}] * k}),
        made_with=run.facts(made).get("provenance", {}),
        headline=_headline(run),
        metrics=metrics,
        decisions=decisions,
        own=next((one for one in decisions if one.get("models") == k + 1 - run.first), {}),  # when it was new
        best=best + run.first if isinstance(best, int) and run.ended else None,
        settings=_settings(generate, chain),
        opponent=_opponent(generate),
        lineage=lineage,
        shards=sum(step.stage == "generate" for step in lineage),
    )


def pairs_card(run: RunFacts, pairs: Mapping[int, Entry], repo: str, model: str) -> str:
    """README.md of the repository `repo` with the pairs that `model` was trained on (t → the step that made or imported
    them)."""
    from huggingface_hub import DatasetCardData

    configs: list[dict] = [
        {
            "config_name": f"iter{t}",
            "data_files": [
                {"split": "train_prefs", "path": place(t, TRAIN_FILE)},
                {"split": "test_prefs", "path": place(t, TEST_FILE)},
            ],
        }
        for t in pairs
    ]
    configs[-1]["default"] = True
    data = DatasetCardData(
        task_categories=["text-generation"],
        tags=model_card.HUB["tags"],
        source_datasets=hub_ids(run, "dataset") or None,
        configs=configs,
        spinloop={"run": run.name, "pairs": {f"iter{t}": step.digest for t, step in pairs.items()}},
    ).to_dict()
    imported = {t: run.facts(step).get("sources") or {} for t, step in pairs.items() if step.place.role == "import"}
    origins = {t: (sources.get("source") or ["a local copy"])[0] for t, sources in imported.items()}  # never a path
    sets = next((step.summary.get("sources") for step in run.steps if step.stage == "reformat"), None)
    return model_card.front(data) + model_card.filled(
        "run_card.pairs.md.j2", run=run, pairs=pairs, repo=repo, model=model, origins=origins, sets=list(sets or [])
    )


def place(t: int, file: str) -> str:
    """Where iteration `t`'s file of pairs lies in the repository."""
    return f"iter{t}/{file}"


def _generate(run: RunFacts, k: int) -> dict[str, Any]:
    """The settings by which the answers were made that θ_k trained against; empty where the run made none."""
    shards = (step for step in run.steps if (step.stage, step.place.iteration) == ("generate", k - 1) and step.key)
    shard = next(shards, None)
    record = run.store.record("generate", shard.key) if shard else None
    return dict(record.payload["config"].get("generate") or {}) if record else {}


def _headline(run: RunFacts) -> str:
    """The sentence of the run's last report, about θ_0, the last model, the best and the controls; empty without."""
    reports = [step for step in run.steps if step.stage == "report" and step.digest]
    sentence = run.read(reports[-1], "report.json").get("sentence") if reports else None
    return sentence if isinstance(sentence, str) else ""


def _settings(generate: Mapping, chain: Mapping) -> str:
    """Of the training, and of the answers that it trained against."""
    made = {"generate": dict(generate)} if generate else {}
    return model_card.as_json({**chain["steps"][-1]["settings"], **made}) if chain.get("steps") else ""


def _opponent(generate: Mapping) -> str:
    """How the opponent's answers were drawn."""
    held = {name: generate[name] for name in Decoding.model_fields if name in generate}
    return str(Decoding.model_validate(held)) if held else ""


def _leads_to(step: Entry, k: int) -> bool:
    """Whether θ_k was made of it, or it is what was measured of θ_k."""
    place = step.place
    if place.role == "control" or (place.iteration is not None and place.iteration >= k):
        return False
    return step.stage in makers("model") or place.model in (None, k)


@dataclass(frozen=True)
class Measure:
    """One figure. `metric` is its name in the artifact, `low` and `high` its 95 % interval (None: unknown)."""

    metric: str
    label: str
    value: float
    low: float | None = None
    high: float | None = None
    rows: int | None = None
    task: str = ""

    def result(self, datasets: Sequence[str]) -> Any:
        """The figure as the hub's own metadata (`EvalResult`)."""
        from huggingface_hub import EvalResult

        held_out = datasets[0] if len(datasets) == 1 else "held-out"
        return EvalResult(
            task_type="text-generation",
            dataset_type=self.task or held_out,
            dataset_name=self.task or "held-out rows",
            metric_type=self.metric,
            metric_name=self.label,
            metric_value=float(f"{self.value:.6g}"),
        )


def measures(run: RunFacts, k: int) -> list[Measure]:
    """What `run` measured of θ_k, in the order of a card: the gate's metric, then all others. Raises BadInput for an
    artifact that is damaged."""
    steps = run.measured("evaluate", k), run.measured("harness", k)
    evaluate, harness = (run.store.tree(step.digest) if step else None for step in steps)
    model = read_model(f"θ_{k}", "iteration", k - 1, evaluate, harness=harness)
    figures = []
    for name, label in MEASURES.items():
        value = model.metrics.get(name)
        if value is not None:
            figures.append(Measure(name, label, value, *interval(name, value, model)))
    for kind, of in model_row(model, None)["style"]["answers"].items():
        for name, label in OF_ANSWERS.items():
            if one := of[name]:
                bounds = one["low"], one["high"], one["rows"]
                figures.append(Measure(f"{name}/{kind}", f"{label}, {of['name']}", one["value"], *bounds))
    for source, (_, known) in by_source(model.answers).items():
        for name, one in known.items():
            label = f"{MEASURES[name]}, rows of {source}"
            figures.append(Measure(name, label, one["value"], one["low"], one["high"], one["rows"], source))
    figures += _harness(model.harness)
    own = run.decision.get("metric")
    return sorted(figures, key=lambda one: one.metric != own)  # what the run is judged by stands first


def interval(name: str, value: float, model: ModelResults) -> tuple[float | None, float | None, int | None]:
    """(low, high, rows) of a rate or a mean over the model's held-out rows; no bounds for other figures."""
    margins, seen = [*model.column("margin").values()], None
    if name.startswith("exact_match/"):
        if not (judged := len(model.column(f"{name.partition('/')[2]}_match"))):
            return None, None, None
        seen = statistics.rate(min(max(value, 0.0), 1.0), judged)
    elif name == "nll/real":
        nll, tokens = model.column("nll"), model.column("tokens")
        keys = [key for key in nll if tokens.get(key)]
        seen = statistics.mean([nll[key] for key in keys], [tokens[key] for key in keys])
    elif name == "spin/accuracy" and margins:
        seen = statistics.rate(min(max(value, 0.0), 1.0), len(margins))
    elif name == "spin/margin":
        seen = statistics.mean(margins)
    return (seen.low, seen.high, seen.rows) if seen else (None, None, len(model.answers) or None)


def _harness(results: dict) -> list[Measure]:
    measured = []
    tasks = results.get("tasks")
    for name, task in sorted(tasks.items()) if isinstance(tasks, dict) else []:
        value, error = number(task.get("value")), number(task.get("stderr"))
        if value is None:
            continue
        metric = str(task.get("metric", "")).partition(",")[0]
        shots = task.get("num_fewshot", 0)  # None: a group whose subtasks differ
        shown = "mixed shots" if shots is None else f"{shots}-shot"
        label = f"{name}, {metric}, {shown} (lm-eval {results.get('lm_eval', '')})"
        low, high = (None, None) if error is None else (value - Z95 * error, value + Z95 * error)
        measured.append(Measure(metric or "value", label, value, low, high, task.get("rows"), task=name))
    return measured
