"""What a person is told while steps run."""

from __future__ import annotations

from tasks.runner.progress import Progress


def test_note_that_every_shard_makes_is_told_once(capsys) -> None:
    """Catches one sentence of the model told for each of hundreds of shards, and another's note lost with it."""
    show = Progress()
    for shard in ("1/3", "2/3", "3/3"):
        show(f"generate[iter 0, shard {shard}]", {"note": "slower: its window is short."})
    show("generate[iter 0, shard 2/3]", {"note": "2 prompts do not fit."})
    show("score[iter 0, pairs 0]", {"note": "slower: its window is short."})
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert [line.split(": ", 2)[1].partition("[")[0] for line in told] == ["generate", "generate", "score"]
    assert "2 prompts" in told[1]
