"""The card of a pair set as a dataset repository: one configuration for each iteration, in the reference's record."""

from __future__ import annotations

from collections.abc import Mapping

from spin_core.analysis.format import escape_markdown
from spin_core.data.rows import TEST_FILE, TRAIN_FILE
from spin_core.job import Entry
from spin_core.report import model_card
from spin_core.report.run_facts import RunFacts, hub_ids


def place(t: int, file: str) -> str:
    """Where iteration `t`'s file lies in the repository."""
    return f"iter{t}/{file}"


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
    return model_card.front(data) + _body(run, pairs, repo, model)


def _answered_by(run: RunFacts, t: int, step: Entry) -> str:
    """θ_t of this run, or where imported pairs are from (never a path)."""
    if step.place.role != "import":
        return f"θ_{t}"
    origin = (run.facts(step).get("sources") or {}).get("source") or ["a local copy"]
    return f"imported from {escape_markdown(str(origin[0]), 120)}"


def _body(run: RunFacts, pairs: Mapping[int, Entry], repo: str, model: str) -> str:
    last = max(pairs)
    lines = ["| configuration | answers by | train pairs | test pairs | content digest |", "|---|---|---|---|---|"]
    for t, step in pairs.items():
        made = step.summary
        train, test = made.get("train_pairs", "–"), made.get("test_pairs", "–")
        lines.append(f"| iter{t} | {_answered_by(run, t, step)} | {train} | {test} | `{step.digest}` |")
    table = "\n".join(lines)
    return (
        f"\n# SPIN pairs of {run.name}\n\nThe pairs that `{model}` was trained on: for each prompt the real answer and "
        f"the one that the model before the iteration gave.\n\n{table}\n\n"
        "`real` and `generated` are lists of `{role, content}` messages that differ in the last one; `finish` is "
        "`stop`, or `length` for an answer that was cut. Column for column this is the record of the published "
        "SPIN_iter sets, with `id` and `finish` besides.\n\n"
        "## Load it\n\n```python\nfrom datasets import load_dataset\n\n"
        f'pairs = load_dataset("{repo}", "iter{last}", split="train_prefs")\n```\n\n'
        "## Limits\n\nThe generated answers are a model's, unread by anyone. The licence of the data that the prompts "
        "and real answers come from applies.\n"
    )
