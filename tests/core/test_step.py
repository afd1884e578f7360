"""Provenance and sources: what is recorded beside a result, and when a source counts as changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from spin_core.errors import StageFailed
from spin_core.runtime import step


def test_provenance_without_git_is_not_a_failure(monkeypatch):
    """Catches hours of finished work lost because the machine has no git."""
    monkeypatch.setenv("PATH", "/nonexistent")
    step.provenance.cache_clear()
    assert step.provenance()["commit"] is None
    step.provenance.cache_clear()


def test_source_edited_while_it_is_read_fails_the_step(tmp_path: Path):
    """Catches a result of a half-edited file that is published under the key of the file as it was before."""
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "a", "response": "b"}\n')
    ref = step.source(str(data), "dataset", "", tmp_path, "")
    step._sources_unchanged({"source": ref})
    data.touch()
    step._sources_unchanged({"source": ref})
    data.write_text('{"prompt": "a", "response": "c"}\n')
    with pytest.raises(StageFailed, match=r"rows\.jsonl: changed while it was being read"):
        step._sources_unchanged({"source": ref})
