"""docs/store-files.md: what lies where in a store, from the docstrings that draw it."""

from __future__ import annotations

import spin_core.store
from spin_core.report import run_facts
from spin_core.store.record import FIELDS
from spin_core.store.store import NAME
from tests.architecture.reference.text import COMMAND, layout, table

HEAD = f"""# Files of the store

Generated from the code (`{COMMAND}`; a test says when it is stale).
Below `DIR/{NAME}/`, where DIR is `--store`, `$SPINLOOP_STORE` or `.spinloop`. On object storage
things lie otherwise: [what is where](object-storage.md#what-is-where). What the folder of an artifact has is said of
[each stage](stages.md), how long things stay in [results and store](store.md).
"""


def page() -> str:
    """The page's Markdown."""
    head = ("path", "what it is")
    places, of_run = layout(spin_core.store.__doc__ or ""), layout(run_facts.__doc__ or "")
    return "\n".join(
        [
            HEAD,
            table(head, places),
            "## The folder of a run: `runs/<run>/`\n",
            "For people, and for the next run of the profile; no look-up of a step reads them.\n",
            table(head, of_run),
            "## A record: `records/<stage>/<key>.json`\n",
            table(("field", "what it is"), [(f"`{name}`", text) for name, text in FIELDS.items()]),
        ]
    )
