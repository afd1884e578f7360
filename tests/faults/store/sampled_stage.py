"""A stage whose output is another one each time, as that of a sampling engine on a GPU can be."""

from __future__ import annotations

import secrets

from spin_core.config.base import Section

NAME = "sampled_stage"
VERSION = 1


class Config(Section):
    """Nothing to choose."""


def run(inputs, config, job):
    """Write two files, of which one is the same each time."""
    (job.out / "answers.jsonl").write_text(f'{{"text": "{secrets.token_hex(8)}"}}\n')
    (job.out / "settings.json").write_text("{}\n")
    return {"rows": 1}
