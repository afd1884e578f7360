"""What another machine's run trained on, of a store on S3, as a plan and a run of this machine see it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flows.plan import looking_up
from spin_core.config.chat import ChatSection
from spin_core.config.profile import Config, parse
from spin_core.data import token_file
from spin_core.data.rows import FILES, Row, prompt_id, write_rows
from spin_core.report import trained
from spin_core.stages import reformat, tokenize
from spin_core.store.keys import config_payload, payload
from spin_core.store.record import Record
from spin_core.store.s3.remote import RemoteStore
from spin_core.store.store import Store
from tasks.runner.run import run_name
from tasks.runner.watch import look, settings_of
from tests.faults.s3.held import Held
from tests.faults.s3.server import BUCKET
from tests.places import entry

URL = f"s3://{BUCKET}/watched"
CONFIG = parse({"name": "demo", "model": {"path": "m"}, "dataset": {"path": "d"}, "runtime": {"min_new_rows": 5}}, "p")


def made(store: Store, config: Config, count: int) -> dict[str, Record]:
    """Records of reformat and tokenize of so many rows."""
    messages = [[{"role": "user", "content": f"{n}"}] for n in range(count)]
    rows = sorted((Row(prompt_id(one), one, "x") for one in messages), key=lambda row: row.id)
    trees = {"reformat": store.new_tree(), "tokenize": store.new_tree()}
    for split, some in (("train", rows), ("test", rows[:1])):
        write_rows(trees["reformat"] / FILES[split], some)
    lines = ((row.id, [1], [2, 3]) for row in rows)
    token_file.write(trees["tokenize"] / token_file.FILES["train"], ("prompt", "answer"), lines)
    (trees["tokenize"] / "shards.json").write_text(json.dumps([{"sha256": f"{count}"}, {"sha256": "same"}]))
    own = reformat.Config(dataset=reformat.anonymous(config.dataset), seed=config.seed)
    ids = tokenize.Config(chat=ChatSection(), max_rejected=0.5)
    inputs = {"source": f"{count:064x}"}
    digest = store.publish(
        payload("reformat", reformat.VERSION, config_payload(own), dict(inputs)),
        trees["reformat"], {"summary": {"train_rows": count, "test_rows": 1}},
    )  # fmt: skip
    tokens = payload("tokenize", tokenize.VERSION, config_payload(ids), {"rows": digest.digest, "tokenizer": "a" * 64})
    return {"reformat": digest, "tokenize": store.publish(tokens, trees["tokenize"], {"summary": {}})}


def test_plan_and_run_of_another_machine_are_compared_with_it(
    held: Held, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Catches a plan on S3 that does not bring runs up to date and so knows of none, and rows that are not fetched and
    so count as gone."""
    monkeypatch.setenv("SPINLOOP_CACHE", str(tmp_path / "made"))
    first = RemoteStore(URL)
    then = made(first, CONFIG, 20)
    ledger = [entry(stage, "", one.key, "ran", 1.0, one.digest) for stage, one in then.items()]
    ledger += [entry(stage, "", "k", "ran", 1.0, then["tokenize"].digest) for stage in ("finetune", "report")]
    trained.keep(first, run_name(CONFIG), ledger, settings_of(CONFIG), datetime(2026, 11, 20, tzinfo=UTC))
    monkeypatch.setenv("SPINLOOP_CACHE", str(tmp_path / "seen"))
    with looking_up(URL) as place:
        seen = look(place.artifacts, CONFIG, run_name(CONFIG), made(place.drafts, CONFIG, 23))
    assert seen.not_started.startswith(f"Not started: 3 new rows of 5 (runtime.min_new_rows) since {run_name(CONFIG)}")
    assert seen.shards == (1, 2) and "no longer in the store" not in seen.sentence
    monkeypatch.setenv("SPINLOOP_CACHE", str(tmp_path / "third"))
    store = RemoteStore(URL)
    assert not look(store, CONFIG, run_name(CONFIG), made(store, CONFIG, 25)).held_back
