"""report: the table of iterations, the curves and sample answers."""

from typing import Any

from spin_core.analysis.decoders import sentences
from spin_core.runtime.step import Step
from spin_core.sources.resolve import is_here
from spin_core.stages import report as core
from spin_core.store import keys
from tasks.runner.run import Run
from tasks.runner.stage import stage


class Table:
    """The lines of the report and what they read, collected while the DAG is laid out."""

    def __init__(self) -> None:
        self.lines: list[dict] = []
        self.inputs: dict[str, list] = {
            name: [] for name in ("evaluate", "harness", "finetune", "gather", "gate", "score")
        }

    def add(self, label: str, kind: str, iteration: int = -1, **made) -> None:
        line = {"label": label, "kind": kind, "iteration": iteration}
        for name, read in self.inputs.items():
            line[name] = -1 if made.get(name) is None else len(read)
            read += [] if made.get(name) is None else [made[name]]
        self.lines.append(line)

    def players(self, **newest) -> dict[str, list]:
        """What was made of θ_0 and its successors, not of the controls, and at the end of the newest."""
        lines = [line for line in self.lines if line["kind"] != "control"]
        return {name: [*(self.inputs[name][line[name]] for line in lines), one] for name, one in newest.items()}


@stage
def report(run: Run, table: Table, label: str = ""):
    profile: dict[str, Any] = keys.config_payload(run.config)
    del profile["runtime"]
    # A path of this machine would be in the key and in a page that people send on; a hub id is worth showing.
    places = (("model", "path"), ("dataset", "path"), ("dataset", "test_path"), ("harness", "include_path"))
    sections = [(profile.get(section) or {}, field) for section, field in places]
    sections += [(one, field) for one in profile["dataset"].get("sets", []) for field in ("path", "test_path")]
    for held, field in sections:
        if held.get(field) and is_here(held[field], run.base_dir):
            held[field] = "(local)"
    for t, place in profile.get("start", {}).get("pairs", {}).items():
        profile["start"]["pairs"][t] = "(local)" if is_here(place, run.base_dir) else place
    rows = [core.RowInputs(**line) for line in table.lines]
    said = sentences(run.config, run.deployed)
    config = core.Config(name=run.config.name, profile=profile, rows=rows, decoders=said)
    return Step(core, label, config), table.inputs
