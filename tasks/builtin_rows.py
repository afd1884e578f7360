"""What `builtin:…` names as dataset.path: the steps that make its rows, and its held-out rows where those are a set of
their own."""

from spin_core.stages.demo_rows import SETS
from tasks.demo_rows import demo_rows
from tasks.docstring_rows import docstring_rows
from tasks.runner.run import Run


def builtin_rows(run: Run, path: str) -> list:
    """Empty where the path is none of these."""
    if path == "builtin:docstrings":
        return [docstring_rows(run)]
    return [demo_rows(run, path, split) for split in ("train", "test")] if path in SETS else []
