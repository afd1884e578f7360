"""The lines of the report, collected while the DAG is laid out."""

from __future__ import annotations


class Table:
    """The lines of the report and what they read."""

    def __init__(self) -> None:
        self.lines: list[dict] = []
        self.inputs: dict[str, list] = {name: [] for name in ("evaluate", "harness", "finetune", "gather", "gate")}

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
