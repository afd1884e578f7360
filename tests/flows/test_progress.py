"""What a person is shown while steps run."""

from __future__ import annotations

from tasks.runner.progress import Progress, where


def test_note_that_every_shard_makes_is_shown_once(capsys) -> None:
    """Catches one sentence of the model shown for each of hundreds of shards, and another's note lost with it."""
    show = Progress()
    for shard in ("1/3", "2/3", "3/3"):
        show(f"generate[iter 0, shard {shard}]", {"note": "slower: its window is short."})
    show("generate[iter 0, shard 2/3]", {"note": "2 prompts do not fit."})
    show("score[iter 0, pairs 0]", {"note": "slower: its window is short."})
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert [line.split(": ", 2)[1].partition("[")[0] for line in notes] == ["generate", "generate", "score"]
    assert "2 prompts" in notes[1]


def test_total_that_nobody_knows_yet_is_not_said_as_zero() -> None:
    """Catches `reading source: 0 of 0 rows` in a worker's log, which reads as an empty dataset."""
    event = {"label": "reading source", "done": 0, "total": 0, "unit": "rows", "figures": {}}
    assert where("reformat", event) == "reformat: reading source"
    assert where("reformat", event | {"done": 4096}) == "reformat: reading source, 4,096 rows"
    known = event | {"done": 93, "total": 1545, "unit": "steps", "figures": {"loss": 2.14149}}
    assert where("sft[θ_0]", known | {"label": "sft"}) == "sft[θ_0]: sft, 93 of 1,545 steps, loss 2.141"
