"""What Prefect's UI shows of a step that failed, as Markdown: what happened, and what a person can do.

Is not: the state's message, which is the sentence alone.
"""

from __future__ import annotations

from textwrap import wrap
from typing import Any

from spin_core.errors import BadInput, ChildDied, SpinloopError, Stopped, StoreError, Unreachable
from spin_core.report.ui_pages import escape

LINES, LETTERS = 40, 2000  # of a message, and of one of its lines: it may have the last lines of a process
WIDTH = 64  # letters in a line of the page, which folds none by itself
WHOLE: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}  # a path can be copied
SMALLER = {  # what makes a stage take less memory, and is in no result's key
    "sft": "runtime.micro_tokens",
    "finetune": "runtime.micro_tokens",
    "score": "runtime.score_tokens",
    "generate": "runtime.generate_batch",
    "evaluate": "runtime.generate_batch",
    "harness": "runtime.harness_batch",
}
REMEDIES: dict[type[SpinloopError], str] = {  # the first that fits
    Stopped: (
        "It was asked to end, and did so in order. Start the same run again: a training goes on from its checkpoint."
    ),
    Unreachable: (
        "Bring the model or dataset to this machine, or the machine to the hub, and start the same run again. A path "
        "of a folder works as well as a hub id."
    ),
    BadInput: (
        "It is about what the run was given, so trying again does not help. Change what the sentence names, in the "
        "profile, in the form (*Custom run*) or in the data, and start a run with it."
    ),
    ChildDied: (
        "Its process ended without an answer, each time that it was tried. Often the machine had no memory left (its "
        "log says so: `dmesg`, or `kubectl describe pod`){smaller}. Then start the same run again."
    ),
    StoreError: (
        "Look at the store: is its disk full, may this user write there, is it mounted on this machine? `spinloop "
        "store verify` checks what lies in it. Then start the same run again."
    ),
    SpinloopError: (
        "Where the message does not say what to change, start the same run again; if it fails in the same way, it is a "
        "fault of spinloop's: report it with this page and the step's log."
    ),
}


def failure(title: str, stage: str, error: SpinloopError) -> str:
    """The page of the step `title` (`finetune[iter 1]`)."""
    remedy = next(text for kind, text in REMEDIES.items() if isinstance(error, kind))
    small = SMALLER.get(stage)
    smaller = f": a smaller `{small}` takes less and changes no result" if small else ""
    lines = str(error).splitlines()
    cut = [f"… {len(lines) - LINES:,} lines before, in the log"] if len(lines) > LINES else []
    # Indented by four: text as it is, in which nothing is Markdown.
    folded = [part for line in [*cut, *lines[-LINES:]] for part in wrap(line[:LETTERS], WIDTH, **WHOLE) or [""]]
    said = "\n".join(f"    {part}" for part in folded)
    return "\n\n".join(
        [
            f"**{escape(title, 100)} did not finish.**",
            said,
            f"**What to do.** {remedy.replace('{smaller}', smaller)}",
            "What finished before is in the store and is not computed again.",
        ]
    )
