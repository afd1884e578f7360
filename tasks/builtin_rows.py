"""What `builtin:…` names as dataset.path: the steps that make its rows, and its held-out rows where those are a set of
their own."""

from tasks.demo_rows import demo_rows
from tasks.docstring_rows import docstring_rows

BUILTIN = {
    "builtin:tasks": lambda run: [demo_rows(run, "train"), demo_rows(run, "test")],
    "builtin:docstrings": lambda run: [docstring_rows(run)],
}
