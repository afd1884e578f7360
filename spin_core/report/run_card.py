"""The model card of a run: the artifact's own card, and what only the run knows: names and commits of what it started
from, held-out figures with intervals, the gate's decision, and the step behind every digest.

Is not: part of any key or artifact. It is written into runs/<name>/ for people and goes to the hub with a push; the
same run gives the same text. Local paths are not in it.
"""

from __future__ import annotations

from collections.abc import Mapping

from spin_core.analysis.format import escape_markdown
from spin_core.config.stage_table import makers
from spin_core.job import Entry
from spin_core.report import model_card
from spin_core.report.card_metrics import Measure, measures
from spin_core.report.run_facts import RunFacts, hub_ids, read_run, repository
from spin_core.store.store import Store

NAME = "model-card.md"
SPIN = "[SPIN](https://arxiv.org/abs/2401.01335) (self-play fine-tuning)"


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
    tree = run.store.tree(made.digest)
    chain = model_card.parse(tree / model_card.FILE).get("spinloop") or {}
    metrics = measures(run, k)
    models, data = hub_ids(run, "model"), hub_ids(run, "dataset")
    block = {**chain, "run": run.name, "model": made.digest}
    metadata = ModelCardData(
        base_model=models[0] if models else None,
        datasets=data or None,
        model_name=f"{run.name} θ_{k}",
        eval_results=[one.result(data) for one in metrics] or None,
        ignore_metadata_errors=False,
        **model_card.HUB,
        spinloop=block,
    ).to_dict()
    metadata.pop("model_name", None)
    parts = [
        f"# {run.name}, θ_{k}: {_what(chain, k)}\n\n{_sentence(run, k)}\n\n{_provenance(run, made)}",
        f"## Held-out figures\n\n{_measures_text(metrics)}",
        *_decision(run, k),
        f"## Training\n\n{model_card.steps_text(chain)}\nSettings of the last step:\n\n{_settings(run, k, chain)}"
        if chain
        else "",
        f"## Lineage\n\n{_lineage(run, k)}",
        f"## Load it\n\n{model_card.loading_text(repo or 'path/of/the/model')}",
        f"## Limits\n\n{model_card.LIMITS}",
    ]
    return model_card.front(metadata) + "\n" + "\n\n".join(part.strip() for part in parts if part) + "\n"


def _what(chain: Mapping, k: int) -> str:
    return model_card.title(chain) if chain else f"SPIN iteration {k}" if k else "the model that training starts from"


def _sentence(run: RunFacts, k: int) -> str:
    last = max(run.models)
    done = f"iteration {k} of the {last} that the run made" if k else f"where its {last} iterations start"
    how = f"{SPIN}, {done}." if k else f"The start of a run of {SPIN}: {done}."
    versions = run.facts(run.models[k]).get("provenance", {})
    made = ", ".join(f"{name} {version}" for name, version in versions.get("versions", {}).items())
    commit = f" (spinloop at commit `{versions['commit'][:12]}`)" if versions.get("commit") else ""
    return how + (f" Trained with {made}{commit}." if made else "")


def _provenance(run: RunFacts, made: Entry) -> str:
    lines = ["| | | content digest |", "|---|---|---|"]
    for kind, stage, builtin in (
        ("model", "demo_model", "the demo's untrained model"),
        ("dataset", "demo_rows", "the demo's made-up tasks"),
    ):
        what = "base model" if kind == "model" else kind
        for one in (source for source in run.sources if source["kind"] == kind):
            place = (
                f"[{one['hub']}](https://huggingface.co/{'datasets/' * (kind == 'dataset')}{repository(one['hub'])})"
            )
            named = f"{place} at commit `{one['commit']}`" if one["hub"] else f"a local {kind}"
            split = f", split {escape_markdown(one['split'], 60)}" if one["split"] else ""
            lines.append(f"| {what} | {named}{split} | `{one['digest']}` |")
        for step in (step for step in run.steps if step.stage == stage and step.digest):
            lines.append(f"| {what} | {builtin} {step.label} | `{step.digest}` |")
    lines.append(f"| this model | run {run.name} | `{made.digest}` |")
    return "\n".join(lines)


def _measures_text(metrics: list[Measure]) -> str:
    if not metrics:
        return "None: this run evaluated nothing."
    lines = ["| measure | value | 95 % interval | rows |", "|---|---|---|---|"]
    return "\n".join(lines + [one.line() for one in metrics])


def _decision(run: RunFacts, k: int) -> list[str]:
    """The decision on this model when it was new, and which one is best in the end."""
    decisions = [run.read(gate, "decision.json") for gate in run.gates]
    own = next((one for one in decisions if one.get("models") == k + 1 - run.first), {})
    if not decisions:
        return []
    lines = []
    if own:
        lines.append(f"When it was new: **{own.get('outcome')}**. {escape_markdown(str(own.get('reason', '')), 1000)}")
        lines += [f"- {escape_markdown(str(alarm), 1000)}" for alarm in own.get("alarms", [])]
    best = run.decision.get("best")
    if isinstance(best, int) and run.ended:
        best += run.first
        lines.append(f"\nThe best of the run by its last decision: θ_{best}{' (this model)' if best == k else ''}.")
    return ["## Decision\n\n" + "\n".join(lines).strip()]


def _settings(run: RunFacts, k: int, chain: Mapping) -> str:
    """Of the training, and of how the answers were made that it trained against."""
    shards = (step for step in run.steps if (step.stage, step.place.iteration) == ("generate", k - 1) and step.key)
    shard = next(shards, None)
    record = run.store.record("generate", shard.key) if shard else None
    made = {"generate": record.payload["config"].get("generate")} if record else {}
    return model_card.settings_text({**chain["steps"][-1]["settings"], **made}) if chain.get("steps") else ""


def _lineage(run: RunFacts, k: int) -> str:
    lines = ["| step | key | output |", "|---|---|---|"]
    shards = 0
    for step in run.steps:
        if not step.digest or step.stage == "report" or not _leads_to(step, k):
            continue
        if step.stage == "generate":
            shards += 1
            continue
        name = escape_markdown(f"{step.stage} {step.label}".strip(), 80)
        lines.append(f"| {name} | `{step.key}` | `{step.digest}` |")
    answers = f"\n\nThe answers came from {shards} generate shards, which the gather steps read." if shards else ""
    return "\n".join(lines) + answers


def _leads_to(step: Entry, k: int) -> bool:
    """Whether θ_k was made of it, or it is what was measured of θ_k."""
    place = step.place
    if place.role == "control" or (place.iteration is not None and place.iteration >= k):
        return False
    return step.stage in makers("model") or place.model in (None, k)
