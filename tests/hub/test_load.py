"""Models and datasets by hub id: which commit, whose token, and what is left without a network."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.hub.hub_home import TOKEN, Ran, command, environment

RESOLVE = """
import json, sys
from pathlib import Path
from spin_core.errors import BadInput
from spin_core.sources.resolve import resolve
path, kind, revision, split = sys.argv[1:5]
try:
    notes = []
    s = resolve(path, kind, revision, Path("/"), split, notes)
    commit = s.hub.rpartition("@")[2]
    print(json.dumps({"digest": s.digest, "path": s.path, "commit": commit, "note": "".join(notes)}))
except BadInput as error:
    print(json.dumps(str(error)))
"""
MODEL = {"config.json": b"{}", "tokenizer.json": b'{"a": 1}', "model.safetensors": b"weights", "README.md": b"# x"}
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def resolve(python, hub):
    hub.add("models/acme/good", MODEL)

    def call(path="acme/good", kind="model", revision="", split="", **how):
        return python(RESOLVE, path, kind, revision, split, **how)

    return call


def test_load_branch_tag_short_and_full_commit_are_one_content(resolve, hub, tmp_path):
    """Catches: a name of a branch kept as the revision, and a digest that depends on how the commit was named."""
    repo = hub.repos["models/acme/good"]
    first = repo.refs["main"]
    repo.refs["v1"] = first
    folder = tmp_path / "local"
    folder.mkdir()
    for name, data in MODEL.items():
        (folder / name).write_bytes(data)
    results = [resolve(revision=name) for name in ("", "main", "v1", first[:7], first)]
    assert not [one for one in results if isinstance(one, str)]
    assert {one["commit"] for one in results} == {first}
    assert {one["digest"] for one in results} == {resolve(str(folder))["digest"]}


def test_load_moved_branch_is_the_new_commit(resolve, hub):
    """Catches: a cached answer of yesterday where the hub says otherwise, and an old commit that changes with it."""
    before = resolve(revision="main")
    new = hub.repos["models/acme/good"].commit({**MODEL, "model.safetensors": b"others"})
    after = resolve(revision="main")
    assert after["commit"] == new != before["commit"] and after["digest"] != before["digest"]
    assert resolve(revision=before["commit"])["digest"] == before["digest"]


def test_load_private_and_gated_require_a_token(resolve, hub):
    """Catches: the client's page of advice, a token in the sentence, and one that is not sent."""
    hub.repos["models/acme/good"].private = True
    text = resolve()
    assert isinstance(text, str) and "shows no model of this name" in text and "HF_TOKEN" in text and "\n" not in text
    wrong = "hf_" + "w" * 34
    text = resolve(token=wrong)
    assert isinstance(text, str) and "does not accept the token of $HF_TOKEN" in text and wrong not in text
    assert resolve(token=TOKEN)["commit"] and hub.authorised
    hub.repos["models/acme/good"].private, hub.repos["models/acme/good"].gated = False, True
    hub.repos["models/acme/good"].commit({**MODEL, "config.json": b'{"new": 1}'})
    text = resolve()
    assert isinstance(text, str) and "is gated; accept its terms" in text and "\n" not in text
    assert resolve(token=TOKEN)["commit"]


def test_load_token_with_a_line_break_is_not_printed(resolve, hub):
    """Catches: a client's complaint about a header, which spells the token out."""
    odd = "hf_" + "x" * 12 + "é" + "y" * 12
    text = resolve(token=odd)
    assert isinstance(text, str) and "x" * 12 not in text and "y" * 12 not in text and "\n" not in text


def test_load_unreachable_hub_a_fully_cached_commit_is_used(resolve, hub):
    """Catches: a failure at a network that is not needed, and a branch of last week used without a word."""
    online = resolve(revision="main")
    full = resolve(revision=online["commit"], url=NOWHERE)
    assert "cannot be asked now (ConnectError" in full["note"] and online["commit"][:8] in full["note"]
    assert full == {**online, "note": full["note"]}
    branch = resolve(revision="main", url=NOWHERE)
    assert branch["digest"] == online["digest"] and "as it was when last asked for" in branch["note"]
    assert online["commit"][:8] in branch["note"] and "\n" not in branch["note"]
    assert resolve(HF_HUB_OFFLINE="1")["digest"] == online["digest"], "main is what an empty revision means"
    for other in ("v2", "f" * 40):
        text = resolve(revision=other, url=NOWHERE)
        assert isinstance(text, str) and "the hub cannot be read" in text and "\n" not in text


def test_load_unreachable_hub_a_cached_commit_with_a_hole_is_refused(resolve, tmp_path):
    """Catches: a download that was cut off taken for the full model: it would have another digest, so another key."""
    online = resolve()
    os.unlink(Path(online["path"]) / "tokenizer.json")
    text = resolve(revision=online["commit"], url=NOWHERE)
    assert isinstance(text, str) and "\n" not in text and "go online" in text
    shutil.rmtree(Path(online["path"]).parents[1] / "trees")
    assert isinstance(resolve(revision=online["commit"], url=NOWHERE), str), "which files it has is not known"
    assert resolve() == online


def test_load_unreachable_hub_a_split_that_was_never_fetched_is_refused(resolve, hub):
    """Catches: a dataset of no rows, or the other split's, from a cache that has one split."""
    rows = {"data/train.jsonl": b'{"prompt": "a", "response": "b"}\n', "data/test.jsonl": b'{"prompt": "c"}\n'}
    hub.add("datasets/acme/rows", rows)
    online = resolve("acme/rows", "dataset", split="train")
    assert resolve("acme/rows", "dataset", online["commit"], "train", url=NOWHERE)["digest"] == online["digest"]
    text = resolve("acme/rows", "dataset", online["commit"], "test", url=NOWHERE)
    assert isinstance(text, str) and "go online" in text


def test_load_run_names_the_commits_and_shares_its_keys_with_local_copies(ran: Ran, start_model, start_rows, tmp_path):
    """Catches: a record that does not say which commit it was, and a hub id, branch or path in a key."""
    model, rows = (ran.hub.repos[name].refs["main"] for name in ("models/acme/start", "datasets/acme/rows"))
    records = ran.store / "spinloop-store-v1" / "records"
    facts = {p.parent.name: json.loads(p.read_text())["facts"] for p in records.glob("[rs][ef][ft]*/*.json")}
    assert facts["sft"]["sources"] == {"model": [f"acme/start@{model}"]}
    assert facts["reformat"]["sources"]["source"] == [f"acme/rows@{rows}"]
    sources = json.loads((ran.folder / "sources.json").read_text())
    assert [(one["kind"], one["hub"], one["commit"], one["split"]) for one in sources] == [
        ("dataset", "acme/rows", rows, "train"),
        ("dataset", "acme/rows", rows, "test"),
        ("model", "acme/start", model, ""),
    ]
    local = tmp_path / "rows"
    for name, data in start_rows.items():
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (local / name).write_bytes(data)
    sets = ["--set", f"model.path={start_model}", "--set", f"dataset.path={local}", "--set", "dataset.revision="]
    plan = ["plan", str(ran.profile), *sets, "--store", str(ran.store), "--json"]
    done = command(plan, environment(tmp_path, NOWHERE), tmp_path)
    assert done.code == 0, done.err
    states = {(one["stage"], one["label"]): one["state"] for one in json.loads(done.out)}
    assert [step for step, state in states.items() if state != "cached"] == [("report", "")], "its page shows hub ids"


def test_look_at_a_hub_set_lists_what_is_not_fetched(spinloop, hub, tmp_path):
    """Catches a look that fetches files which no run reads, or is silent of them; a model is not needed for it."""
    rows = b"".join(b'{"question": "q %d", "answer": "a"}\n' % i for i in range(30))
    files = {"data/train-00000-of-00001.jsonl": rows, "data/test-00000-of-00001.jsonl": rows, "README.md": b"# rows"}
    hub.add("datasets/acme/rows", files)
    done = spinloop("data", "acme/rows", "--json", "--store", tmp_path / "store")
    assert done.code == 0, done.err
    made = json.loads(done.out)
    assert [(file["name"], file["use"], file["rows"]) for file in made["files"]] == [
        ("data/train-00000-of-00001.jsonl", "training", 30),
        ("README.md", "", 0),
        ("data/test-00000-of-00001.jsonl", "", 0),
    ]
    assert not [one for one in hub.requests if "resolve" in str(one) and "test-0" in str(one)]
    assert not (tmp_path / "store").exists()
