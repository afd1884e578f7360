"""`spinloop push` with the real client against a hub on loopback: what arrives, what a second push does, and what is
refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.hub.hub_home import TOKEN, Ran, command, commands, environment
from tests.hub.hub_server import Hub

FETCH = """
import json, sys
from pathlib import Path
from huggingface_hub import ModelCard, snapshot_download
from spin_core.sources.resolve import resolve
repo, kind, revision, local = sys.argv[1:5]
folder = snapshot_download(repo, repo_type=kind, revision=revision or None, local_dir=local)
card = ModelCard.load(Path(folder) / "README.md")
digest = resolve(repo, kind, revision, Path("/")).digest if kind == "model" else ""
print(json.dumps({"digest": digest, "data": card.data.to_dict(), "text": card.text}))
"""


@pytest.fixture
def fetch(python, tmp_path):
    """Downloads a repository with the token; what its card says, and the folder."""

    def call(repo: str, kind: str = "model", revision: str = "") -> tuple[dict, Path]:
        local = tmp_path / "fetched" / repo.replace("/", "-") / (revision or "main")
        return python(FETCH, repo, kind, revision, local, token=TOKEN), local

    return call


@pytest.fixture
def push(spinloop, ran: Ran):
    """`spinloop push` of the run in `ran`."""

    def call(*args: str, to: str = "acme/tiny", **how):
        return spinloop("push", ran.run, "--to", to, "--store", ran.store, *args, **how)

    return call


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".cache" not in path.parts and path.name != ".gitattributes"
    }


def best_of(ran: Ran) -> int:
    """The k that the run's last gate decided for."""
    steps = json.loads((ran.folder / "steps.json").read_text())
    gates = [step["digest"] for step in steps if step["stage"] == "gate"]
    assert gates, "the tiny profile has gates"
    decision = ran.store / "spinloop-store-v1" / "trees" / gates[-1] / "decision.json"
    return json.loads(decision.read_text())["best"]


def model_tree(ran: Ran, k: int) -> Path:
    return ran.tree("finetune", f"iter {k - 1}") if k else ran.tree("sft", "θ_0")


def test_push_best_model_arrives_complete_with_a_card_that_the_hub_takes(push, fetch, hub: Hub, ran: Ran):
    """Catches: another model than the gate's best, a file lost or changed on the way, bookkeeping of the store among
    the files, and a card without the chain from the base model's commit on."""
    done = push()
    assert done.code == 0, done.err
    k = best_of(ran)
    assert f"θ_{k} of {ran.run} is there, commit " in done.out
    card, folder = fetch("acme/tiny")
    tree = model_tree(ran, k)
    want, got = contents(tree), contents(folder)
    assert got.keys() == want.keys()
    assert {name for name in want if want[name] != got[name]} == {"README.md"}
    data = card["data"]
    assert data["library_name"] == "transformers" and data["tags"] == ["spinloop", "spin"]
    assert data["base_model"] == "acme/start" and data["datasets"] == ["acme/rows"]
    assert data["spinloop"]["model"] == tree.name and data["spinloop"]["run"] == ran.run
    assert [step["stage"] for step in data["spinloop"]["steps"]] == ["sft"] + ["finetune"] * k
    figures = {
        metric["type"]: metric["value"] for result in data["model-index"][0]["results"] for metric in result["metrics"]
    }
    metrics = json.loads((ran.tree("evaluate", f"θ_{k}") / "metrics.json").read_text())
    for name in ("nll/real", "exact_match/greedy"):
        assert figures[name] == pytest.approx(metrics[name], rel=1e-5)
    for repo in ("models/acme/start", "datasets/acme/rows"):
        assert f"commit `{ran.hub.repos[repo].refs['main']}`" in card["text"], repo
    for words in ('from_pretrained("acme/tiny")', "## Limits", "95 % interval", "## Decision", tree.name):
        assert words in card["text"], words
    assert not re.search(r"(?<![\w./])/(tmp|home|root|work)/", card["text"]), "a path of this machine"
    assert push("--model", "2", to="acme/last").code == 0
    steps = fetch("acme/last")[0]["data"]["spinloop"]["steps"]
    assert [(step["stage"], step.get("iteration")) for step in steps] == [
        ("sft", None),
        ("finetune", 1),
        ("finetune", 2),
    ]
    message = hub.repos["models/acme/tiny"].commits[hub.repos["models/acme/tiny"].refs["main"]][0]
    assert message.startswith(f"{ran.run}: θ_{k}\n") and tree.name in message


def test_push_again_makes_no_commit_and_another_model_one(push, fetch, hub: Hub, ran: Ran):
    """Catches: a commit for each push, weights of an older push that stay beside the new ones, one model's name."""
    assert push("--model", "θ_1").code == 0
    repo = hub.repos["models/acme/tiny"]
    commits = len(repo.commits)
    hub.requests.clear()
    done = push("--model", "1")
    assert done.code == 0 and "acme/tiny: nothing to push, θ_1" in done.out, done.out + done.err
    assert len(repo.commits) == commits and not [a for a in hub.requests if "/commit/" in a or a.startswith("PUT")]
    repo.commit({**hub.files("models/acme/tiny"), "model-00001-of-00002.safetensors": b"old", "LICENSE": b"mine"})
    assert push("--model", "last").code == 0
    assert len(repo.commits) == commits + 2
    _, folder = fetch("acme/tiny")
    got, want = contents(folder), contents(model_tree(ran, 2))
    assert got.pop("LICENSE") == b"mine" and got.keys() == want.keys()
    assert got["model.safetensors"] == want["model.safetensors"]


@pytest.mark.full
def test_push_leaves_no_settings_of_the_model_before(push, hub: Hub, ran: Ran):
    """Catches: a former model's chat template or tokens that are loaded with the new model, and a document or another's
    file deleted with them; the deletion has to be shown."""
    stale = {"chat_template.jinja": b"old", "added_tokens.json": b"{}", "tokenizer.model": b"old", "vocab.txt": b"old"}
    kept = {"LICENSE.txt": b"mine", "NOTICE.txt": b"", ".gitattributes": b"", "plot.png": b"", "logs/a.json": b"{}"}
    hub.add("models/acme/tiny", {**stale, **kept, "README.md": b"old"})
    stale = {name: data for name, data in stale.items() if not (model_tree(ran, 2) / name).exists()}
    assert len(stale) >= 3, "the demo's model has some of these files itself"
    done = push("--model", "2")
    assert done.code == 0, done.err
    got, names = hub.files("models/acme/tiny"), ", ".join(sorted(stale))
    assert got.keys() == kept.keys() | contents(model_tree(ran, 2)).keys()
    assert f"acme/tiny: deleted, as this model has no such files: {names}" in done.out
    repo = hub.repos["models/acme/tiny"]
    assert repo.commits[repo.refs["main"]][0].endswith(f"has no such files: {names}")
    assert "nothing to push" in push("--model", "2").out


def test_push_of_a_run_that_did_not_end_takes_a_model_by_name_only(push, hub: Hub, ran: Ran, tmp_path):
    """Catches: a rerun that failed early and has the gate of θ_1 as its last one, so that θ_1 is called the best."""
    store = tmp_path / "store"
    shutil.copytree(ran.store, store, symlinks=True)
    file = store / "spinloop-store-v1" / "runs" / ran.run / "steps.json"
    steps = json.loads(file.read_text())
    first = next(i for i, step in enumerate(steps) if step["stage"] == "gate")
    file.write_text(json.dumps(steps[: first + 1]))
    for model in ("best", "last"):
        done = push("--dry-run", "--model", model, "--store", str(store))
        assert done.code == 2 and done.err.count("\n") == 1, done
        assert f"{model}: the run did not end; run it again, or name a model: --model θ_1." in done.err
    done = push("--dry-run", "--model", "θ_1", "--store", str(store))
    assert done.code == 0 and "θ_1 of" in done.out, done.err


def test_push_pushed_model_is_the_local_one_to_a_run(push, fetch, ran: Ran, python):
    """Catches: a model whose content digest, so whose steps' keys, a way over the hub changes."""
    assert push("--model", "2", "--revision", "v2").code == 0
    card, _ = fetch("acme/tiny", revision="v2")
    code = (
        "import json,sys;from pathlib import Path;from spin_core.sources.resolve import resolve\n"
        "print(json.dumps(resolve(sys.argv[1],'model','',Path('/')).digest))"
    )
    assert card["digest"] == python(code, model_tree(ran, 2))


def test_push_pairs_load_as_a_dataset_and_in_spinloop(push, fetch, hub: Hub, ran: Ran, tmp_path):
    """Catches: iterations mixed in one split, a card whose configurations do not load, pairs of later iterations."""
    from datasets import load_dataset

    from spin_core.data.rows import TRAIN_FILE, read_pairs

    done = push("--model", "2", "--pairs", "acme/tiny-pairs", "--private")
    assert done.code == 0, done.err
    assert hub.repos["datasets/acme/tiny-pairs"].private and hub.repos["models/acme/tiny"].private
    card, folder = fetch("acme/tiny-pairs", "dataset")
    assert [config["config_name"] for config in card["data"]["configs"]] == ["iter0", "iter1"]
    for t in (0, 1):
        tree = ran.tree("gather", f"iter {t}")
        assert (folder / f"iter{t}" / TRAIN_FILE).read_bytes() == (tree / TRAIN_FILE).read_bytes()
        table = load_dataset(str(folder), f"iter{t}", split="train_prefs", cache_dir=str(tmp_path / "cache"))
        assert table["real"][0] == [dict(turn) for turn in _real(read_pairs(tree / TRAIN_FILE)[0])]
    again = push("--model", "2", "--pairs", "acme/tiny-pairs", "--private")
    assert again.out.count("nothing to push") == 2
    only_first = push("--model", "1", "--pairs", "acme/first-pairs", to="acme/first")
    assert only_first.code == 0 and not [f for f in hub.files("datasets/acme/first-pairs") if f.startswith("iter1")]


def _real(pair) -> list[dict]:
    return [*pair.prompt, {"role": "assistant", "content": pair.real}]


def test_push_dry_run_sends_the_hub_nothing(push, hub: Hub):
    """Catches: a rehearsal that creates the repository, or is silent on what a push deletes."""
    done = push("--dry-run", "--model", "2", "--pairs", "acme/tiny-pairs", token="")
    assert done.code == 0, done.err
    assert "model.safetensors" in done.out and "iter0/train_prefs" in done.out and "README.md" in done.out
    assert "acme/tiny: other weights and settings" in done.out and "would be deleted" in done.out
    assert hub.requests == [] and hub.repos == {}


def test_push_latest_is_the_latest_run(spinloop, ran: Ran):
    """Catches: a name that `report` takes and push does not."""
    done = spinloop("push", "latest", "--dry-run", "--to", "acme/tiny", "--store", ran.store)
    assert done.code == 0 and f"of {ran.run} would be uploaded" in done.out, done.err


def test_push_refusals_are_one_sentence_each(push, hub: Hub, ran: Ran, tmp_path):
    """Catches: the client's traceback, a token shown, a push to somebody else's or a public place, a wrong model."""
    hub.tokens["hf_" + "r" * 30] = {"others"}
    hub.add("models/acme/public", {"a.txt": b"x"})
    hub.add("datasets/acme/data", {"a.txt": b"x"})
    cases = [
        (push(token=""), 2, "There is no token to write to the hub with; set HF_TOKEN"),
        (push(token="hf_" + "w" * 30), 2, "acme/tiny: the hub does not accept the token of $HF_TOKEN"),
        (push(token="hf_" + "r" * 30), 2, "acme/tiny: the token of $HF_TOKEN may not write there"),
        (push(to="acme/public", token="hf_" + "r" * 30), 2, "acme/public: the token of $HF_TOKEN may not write"),
        (push(url="http://127.0.0.1:9"), 1, "acme/tiny: the hub cannot be reached"),
    ]
    given = {
        "acme/public: this repository is public": [ran.run, "--to", "acme/public", "--private"],
        "acme/data: the hub has a dataset of this name and no model": [ran.run, "--to", "acme/data"],
        "--to datasets/acme/data: no hub id; give org/name": [ran.run, "--to", "datasets/acme/data"],
        "--pairs x: no hub id": [ran.run, "--to", "acme/tiny", "--pairs", "x"],
        "θ_7 was not made by this run (it made θ_0, θ_1, θ_2)": [ran.run, "--to", "acme/tiny", "--model", "θ_7"],
        "newest: no name of a model": [ran.run, "--to", "acme/tiny", "--model", "newest"],
        "θ_0 was trained on no pairs": [ran.run, "--to", "acme/tiny", "--model", "0", "--pairs", "acme/p"],
        f"runs there: {ran.run}.": ["other", "--to", "acme/x"],
    }
    calls = [["push", *args, "--store", str(ran.store)] for args in given.values()]
    ended = commands(calls, environment(tmp_path, hub.url, TOKEN), tmp_path)
    cases += [(done, 2, message) for done, message in zip(ended, given, strict=True)]
    for done, code, message in cases:
        assert done.code == code and message in done.err, (message, done)
        assert len(done.err.strip().splitlines()) == 1 and "Traceback" not in done.err, done.err
        assert not re.search(r"hf_(w|r){5}", done.err + done.out), "the token is printed"
    assert "models/acme/tiny" not in hub.repos and list(hub.files("models/acme/public")) == ["a.txt"]


def test_push_damaged_model_is_not_uploaded(hub: Hub, ran: Ran, tmp_path):
    """Catches: a file that the disk changed since it was published, sent to the world under the old digest."""
    store = tmp_path / "store"
    shutil.copytree(ran.store, store, symlinks=True)
    victim = store / "spinloop-store-v1" / "trees" / model_tree(ran, 2).name / "model.safetensors"
    victim.chmod(0o644)
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    args = ["push", ran.run, "--to", "acme/tiny", "--model", "2", "--store", str(store)]
    done = command(args, environment(tmp_path, hub.url, TOKEN), tmp_path)
    assert done.code == 2 and "is not whole in the store any more" in done.err and hub.requests == []


@pytest.mark.full
def test_push_token_of_a_secret_block(push, hub: Hub, python, tmp_path):
    """Catches: a block that is not read, its name taken for the token, and the token in what is printed."""
    other = "hf_" + "b" * 34
    hub.tokens[other] = {"acme"}
    save = (
        "import json,os;from flows.server.embedded import EmbeddedServer;from prefect.blocks.system import Secret\n"
        "with EmbeddedServer().ready(): Secret(value=os.environ['SAVED']).save('hub-token'); print(json.dumps(1))"
    )
    python(save, SAVED=other)
    done = push("--token-block", "hub-token", token="")
    assert done.code == 0, done.err
    assert hub.authorised and other not in done.out + done.err
    done = push("--token-block", "none-such", token="")
    assert done.code == 2 and "Prefect has no Secret block of this name" in done.err
    assert len(done.err.strip().splitlines()) == 1
