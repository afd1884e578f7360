"""What is new in a dataset since the last run that trained, and a threshold below which a run does not train."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROWS = [{"prompt": f"Reverse: {i:04d}", "response": f"{i:04d}"[::-1]} for i in range(120)]


class Done(NamedTuple):
    """What a command gave: exit code, standard output (of `--json` what it says), standard error, and the ledger and
    watch.json that were then in the run's folder."""

    code: int
    made: Any
    err: str
    ledger: bytes = b""
    seen: Any = None

    @property
    def folder(self) -> Path:
        return Path(self.made["folder"])

    def ran(self, *stages: str) -> int:
        """Steps of these stages that ran, by the ledger of the folder."""
        return sum(step["stage"] in stages and step["state"] == "ran" for step in json.loads(self.ledger))


@pytest.fixture
def at(spinloop, server, tiny, model, tmp_path) -> Callable[..., Done]:
    """`at(rows, *settings)`: a run of these rows in the test's store, as cheap as a run can be."""
    data = tmp_path / "data.jsonl"
    cheap = [f"dataset.path={data}", "dataset.limit=0", f"model.path={model}", "sft=", "iterations=1"]
    cheap += ["generate.max_new_tokens=3", "evaluate.max_new_tokens=1", "runtime.checkpoint_every=0"]
    cheap += ["finetune.global_batch=32", "runtime.micro_tokens=8192"]

    def call(rows: list[dict], *settings: str, command: str = "run", as_json: bool = True) -> Done:
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sets = [part for setting in (*cheap, *settings) for part in ("--set", setting)]
        code, out, err = spinloop(command, tiny, "--store", tmp_path / "store", *["--json"] * as_json, *sets)
        if code or not as_json:
            return Done(code, out, err)
        made = json.loads(out)
        ledger, seen = (Path(made["folder"], name).read_bytes() for name in ("steps.json", "watch.json"))
        return Done(code, made, err, ledger, json.loads(seen))

    return call


def more(rows: list[dict], count: int) -> list[dict]:
    return [*rows, *({"prompt": f"Reverse: more {i}", "response": "erom"} for i in range(count))]


def newest_run() -> Any:
    """What the server has of the flow run that began last."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return client.read_flow_runs(sort="START_TIME_DESC", limit=1)[0]


def page(key: str, run: Any) -> str:
    """The text of a flow run's Markdown page."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey

    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[key]), flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
    with get_client(sync_client=True) as client:
        (made,) = client.read_artifacts(artifact_filter=wanted)
    return str(made.data)


def test_new_rows_are_counted_since_the_last_run_that_trained(at, spinloop, tmp_path) -> None:
    """Catches a threshold that counts since the last look, so that fifty weeks of ten new rows never train; a look that
    trains, takes the place of the results of the run before, or is shown as an ordinary end; one that holds back the
    first run; and one that nothing overrides."""
    least = "runtime.min_new_rows=30"
    first = at(ROWS, least)
    assert first.code == 0 and first.ran("finetune") == 1 and not first.made["not_started"], first.err
    assert "The run trains whatever runtime.min_new_rows says: it is the first." in first.err
    before = (first.folder / "steps.json").read_bytes(), (first.folder / "report.html").read_bytes()
    for count in (10, 20):
        look = at(more(ROWS, count), least)
        fresh = look.seen["change"]["parts"][""]["train"]["new"]
        assert look.code == 0 and count - 4 <= fresh <= count, look.err
        since = f"since {first.made['run']} of {look.seen['since']['at'][:10]}"
        said = f"Not started: {fresh} new rows of 30 (runtime.min_new_rows) {since}; --set runtime.min_new_rows=0"
        assert look.made["not_started"].startswith(said) and look.made["ran"] == 2
        assert look.folder == first.folder and look.made["report"] == first.made["report"]
        assert before == ((first.folder / "steps.json").read_bytes(), (first.folder / "report.html").read_bytes())
        run = newest_run()
        assert (run.state.name, run.state.type, run.state.message) == (
            "Not started", "COMPLETED", look.made["not_started"],
        )  # fmt: skip
        assert {"profile:tiny", "not-started"} <= set(run.tags)
        assert f"training rows: {fresh} new" in page("tiny-dataset", run) and "data:image/svg" in page(
            "tiny-dataset", run
        )
    code, out, _ = spinloop("report", "--store", tmp_path / "store")
    assert code == 0 and out.rstrip().endswith(look.made["not_started"])
    grown = at(more(ROWS, 40), least)
    assert grown.code == 0 and grown.ran("finetune") == 1 and not grown.made["not_started"], grown.err
    assert grown.seen["since"]["at"] == look.seen["since"]["at"] and grown.made["new"] in grown.err
    generated, shards = grown.ran("generate"), grown.seen["shards"]
    assert shards[0] == generated < shards[1]
    assert "What is new in the dataset" in (grown.folder / "report.html").read_text()
    run = newest_run()
    assert run.state.name == "Completed" and "not-started" not in run.tags and page("tiny-dataset", run)
    again = at(more(ROWS, 40), least)
    assert again.made["not_started"].startswith("Not started: 0 new rows of 30") and again.made["cached"] == 2
    assert again.seen["since"]["at"] > grown.seen["since"]["at"], "compared with the run that trained last"
    anyway = at(more(ROWS, 40), "runtime.min_new_rows=0")
    assert not anyway.made["not_started"] and anyway.made["ran"] == 0 and anyway.made["cached"] > 15
    assert newest_run().state.name == "Completed"
    code, out, _ = spinloop("report", "--store", tmp_path / "store")
    assert code == 0 and "Not started" not in out


def test_plan_says_the_same_and_what_cannot_be_compared(at, tmp_path) -> None:
    """Catches a plan that counts otherwise than the run, writes to the store or trains on a guess; rows of other
    settings or of another dataset that are counted as new; a week's file of another name that is another dataset; a
    failed run that the next one is compared with; and a store of before that is compared with nothing."""
    first = at(ROWS, "runtime.min_new_rows=30")
    assert first.code == 0, first.err
    store = tmp_path / "store" / "spinloop-store-v1"

    def plan(rows: list[dict], *settings: str) -> str:
        done = at(rows, "runtime.min_new_rows=30", *settings, command="plan", as_json=False)
        assert done.code == 0, done.err
        return " ".join(done.made.split())

    changed = [{**row, "response": "?"} if i in (5, 6) else row for i, row in enumerate(more(ROWS, 8)) if i != 9]
    text, kept = plan(changed), sorted(path.name for path in (store / "trees").iterdir())
    failed = at(changed, "runtime.min_new_rows=0", "runtime.pools.finetune=no-such-pool")
    assert failed.code != 0 and "no-such-pool" in failed.err
    (sentence,) = (line for line in failed.err.splitlines() if line.startswith("The dataset since"))
    assert sentence in text and "Not started: " in text and "2 edited" in sentence and "1 gone" in sentence
    assert len(kept) < len([*(store / "trees").iterdir()]), "the failed run kept what it made, and the plan nothing"
    assert sentence in plan(changed), "a failed run did not train"
    same = tmp_path / "another-week.jsonl"
    same.write_text((tmp_path / "data.jsonl").read_text())
    assert sentence in (named := plan(changed, f"dataset.path={same}")) and "Not started: " in named
    other = plan(changed, "finetune.lr=2e-4")
    assert sentence in other and "other settings than" in other and "Not started" not in other
    cut = plan(changed, "chat.max_prompt_length=40")
    assert "Lengths are in characters: chat.max_prompt_length: 48 → 40. " in cut and "training rows in tokens" in other
    for setting, why in (("dataset.test_fraction=0.2", "dataset.test_fraction: 0.1 → 0.2"), ("seed=4", "seed: 3 → 4")):
        assert f"cannot be said: rows were made otherwise then ({why})." in (said := plan(changed, setting))
        assert "Not started" not in said
    strangers = [{"prompt": f"Spell {i}", "response": "x"} for i in range(60)]
    assert "cannot be said: no row is in both, so it is another dataset." in plan(strangers)
    (first.folder / "trained.json").unlink()
    ledger = first.folder / "steps.json"
    assert "The dataset since" not in plan(changed), "the ledger is of the run that failed"
    ledger.write_bytes(first.ledger)
    assert sentence in plan(changed)
    reformat = next(step for step in json.loads(first.ledger) if step["stage"] == "reformat")
    (store / "records" / "reformat" / f"{reformat['key']}.json").unlink()
    assert "the rows that it trained on are no longer in the store" in plan(changed)
