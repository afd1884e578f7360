"""README.md of a model artifact: what was trained on what, with which settings, from the base model on.

Is not: the card of a run (`spin_core/report/run_card.py`), which also knows names, held-out figures and the gate's
decision. Only what enters the step's key, and the training's own metrics, is in it: no path, clock, host or version, so
the same step writes the same bytes. The front matter is the hub's; its `spinloop:` block carries the chain of training
steps, which the next step reads from its input model and continues.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from spin_core.analysis.format import escape_markdown
from spin_core.errors import StageFailed
from spin_core.job import Job
from spin_core.store.keys import DIGEST

FILE = "README.md"
FORMAT = 1
MAX_BYTES = 1 << 20
STAGES = ("sft", "finetune")
HUB: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["spinloop", "spin"]}
SHOWN = ("loss", "rewards/margins", "rewards/accuracies")


def write_card(job: Job, stage: str, settings: Mapping, source: Path, history: Sequence[Mapping]) -> None:
    """Write README.md into the model directory `job.out` that `stage` trained from the one in `source`.

    `settings` are the stage's own, `history` its metrics, one mapping for each optimiser step. Without a digest of the
    model in `job.digests`, as in a test, the chain begins with an unknown base. Of several processes the first writes.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    chain = read_chain(source, str(job.digests.get("model", "")))
    step: dict[str, Any] = {"stage": stage}
    if stage == "finetune":
        step["iteration"] = iterations(chain) + 1
    step |= {"inputs": dict(sorted(job.digests.items())), "settings": dict(settings)}
    step["result"] = {"steps": len(history), **_results(history)}
    chain["steps"].append(step)
    text = front({**HUB, "spinloop": chain}) + filled(
        "model_card.md.j2", title=title(chain), step=step, chain=chain, settings=as_json(settings)
    )
    try:
        (job.out / FILE).write_text(text, encoding="utf-8")
    except OSError as error:
        raise StageFailed(
            f"the model card could not be written to {job.out} ({error}); free disk space and run again"
        ) from error


def read_chain(folder: Path, digest: str) -> dict[str, Any]:
    """`{format, base, steps}`: the training steps behind the model in `folder`, whose content digest is `digest`.

    Only the README.md of a store's own artifact is believed: its folder is named by the digest of all that is in it.
    That of any other folder is in no key, so two users of one key could read different things there; then, as where it
    is missing or not of this form, the chain begins here, with `digest` as its base.
    """
    new: dict[str, Any] = {"format": FORMAT, "base": digest, "steps": []}
    if not DIGEST.fullmatch(digest) or Path(folder).name != digest:
        return new
    chain = parse(Path(folder) / FILE).get("spinloop")
    return chain if isinstance(chain, dict) and _is_chain(chain) else new


def iterations(chain: Mapping) -> int:
    """How many SPIN iterations are behind a model."""
    return sum(step["stage"] == "finetune" for step in chain["steps"])


def front(data: Mapping) -> str:
    """The card's front matter, `data` as YAML between two lines of dashes; short lists and mappings on one line."""
    text = yaml.safe_dump(
        dict(data), sort_keys=False, default_flow_style=None, allow_unicode=True, width=1 << 16, line_break="\n"
    )
    return f"---\n{text}---\n"


def parse(file: Path) -> dict[str, Any]:
    """The front matter of a card; {} where there is none that can be read."""
    from huggingface_hub import metadata_load

    try:
        return (metadata_load(file) if file.stat().st_size <= MAX_BYTES else None) or {}
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}


def title(chain: Mapping) -> str:
    """What the model is, for a heading."""
    done = iterations(chain)
    if chain["steps"] and chain["steps"][-1]["stage"] == "sft":
        return "supervised fine-tuning" + (f" after SPIN iteration {done}" if done else "")
    return f"SPIN iteration {done}" if done else "the model that training starts from"


def as_json(settings: Mapping) -> str:
    """The settings of a step."""
    return json.dumps(dict(settings), indent=1, sort_keys=True, ensure_ascii=False)


def filled(template: str, **values: object) -> str:
    """A Markdown template that lies beside this file, with its values: texts from outside go through `escaped`."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), undefined=jinja2.StrictUndefined,
        autoescape=jinja2.select_autoescape(), keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["escaped"] = escape_markdown
    return environment.get_template(template).render(**values)


def _results(history: Sequence[Mapping]) -> dict[str, float]:
    """The first and the last value of the figures worth a line, to six digits."""
    results = {}
    for name in SHOWN:
        for place, line in (("first", history[0]), ("last", history[-1])) if history else ():
            if isinstance(line.get(name), float | int):
                results[f"{name}/{place}"] = float(f"{line[name]:.6g}")
    return results


def _is_chain(value: Mapping) -> bool:
    if value.get("format") != FORMAT or not DIGEST.fullmatch(str(value.get("base"))):
        return False
    steps = value.get("steps")
    return isinstance(steps, list) and all(
        isinstance(step, dict)
        and step.get("stage") in STAGES
        and isinstance(step.get("iteration", 0), int)
        and ("iteration" in step) == (step["stage"] == "finetune")
        and isinstance(step.get("inputs"), dict)
        and isinstance(step.get("settings"), dict)
        and isinstance(step.get("result"), dict)
        and isinstance(step["result"].get("steps"), int)
        for step in steps
    )
