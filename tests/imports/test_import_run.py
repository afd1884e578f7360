"""A run that begins with what another one made: the same keys where the bytes are the same, the same weights where the
pairs are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from spin_core.config.profile import parse
from spin_core.data import token_file
from spin_core.errors import BadInput
from spin_core.job import Job
from spin_core.sources.folders import SETTINGS, WEIGHTS
from spin_core.stages import tokenize
from tests.flows import migrated
from tests.flows.fixtures import TINY
from tests.hub.hub_home import command, environment
from tests.hub.hub_server import start

ROOT = "spinloop-store-v1"


class First:
    """The run whose results are exported."""

    def __init__(self, store: Path, steps: list[dict]):
        self.store = store
        self.steps = {(step["stage"], step["label"]): step for step in steps}

    def tree(self, stage: str, label: str) -> Path:
        return self.store / ROOT / "trees" / self.steps[stage, label]["digest"]

    def copied(self, stage: str, label: str, place: Path) -> Path:
        """A complete tree, as `cp -rL runs/…` copies it."""
        shutil.copytree(self.tree(stage, label), place, copy_function=shutil.copyfile)
        for path in (place, *place.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        return place

    def published(self, t: int, place: Path) -> Path:
        """A pair set as it is published: other names, another order, no ids."""
        (place / "data").mkdir(parents=True)
        for split in ("train", "test"):
            table = pq.read_table(next(self.tree("gather", f"iter {t}").glob(f"{split}_prefs-*")))
            table = table.select(["real", "generated", "finish"])
            backwards = table.take(list(range(len(table)))[::-1])
            pq.write_table(backwards, place / f"data/{split}-00000-of-00001.parquet")
        return place


@pytest.fixture(scope="module")
def first(finished) -> First:
    return First(*finished)


def profile(path: Path, **changes) -> Path:
    """The tiny profile from θ_1 on."""
    kept = {name: part for name, part in TINY.items() if name != "sft"}
    path.write_text(yaml.safe_dump({**kept, "name": "from1", **changes}))
    return path


@pytest.fixture
def compute(spinloop, server, tmp_path):
    """Run a profile in a fresh store: its steps by stage and label, and the store."""

    def call(file: Path, store: str = "store") -> dict[tuple[str, str], dict]:
        code, out, err = spinloop("run", file, "--store", tmp_path / store, "--json")
        assert code == 0, err
        steps = json.loads(Path(json.loads(out)["folder"], "steps.json").read_text())
        return {(step["stage"], step["label"]): step for step in steps}

    return call


@pytest.fixture
def pushed(spinloop, tmp_path):
    """What `push --pairs` of the run in `compute`'s store would upload: file → its repository."""

    def call() -> dict[str, str]:
        push = ("push", "latest", "--to", "acme/m", "--model", "2", "--pairs", "acme/p", "--dry-run")
        code, out, err = spinloop(*push, "--store", tmp_path / "store")
        assert code == 0, err
        files: dict[str, str] = {}
        for line in out.splitlines():
            repo = line.partition(":")[0] if "would be uploaded" in line else repo  # noqa: F821
            if line.startswith("  "):
                files[line.split()[1]] = repo
        return files

    return call


def test_run_from_imported_trees_has_the_keys_of_the_first(first, compute, pushed, spinloop, tmp_path):
    """Catches: an import that is keyed by its path, or that changes a byte: the same iteration would be another one in
    every key from there on, sampled ids included. The folder of published things is imported, then named by digests,
    and is gone when it runs. Also a push that has only those of the pairs that the run made itself, or tokens."""
    folder = tmp_path / "published"
    first.copied("gather", "iter 0", folder / "SPIN_iter0")
    first.copied("finetune", "iter 0", folder / "tiny-SPIN-iter0")
    code, out, err = spinloop("import", folder, "--store", tmp_path / "store", "--json")
    assert code == 0, err
    lines = {line["what"]: line for line in json.loads(out)}
    shutil.rmtree(folder)
    assert lines["θ_1"]["digest"] == first.steps["finetune", "iter 0"]["digest"]
    assert lines["pairs_0"]["digest"] == first.steps["gather", "iter 0"]["digest"]
    start = {"iteration": 1, "pairs": {0: lines["pairs_0"]["digest"]}}
    steps = compute(profile(tmp_path / "from1.yaml", model={"path": lines["θ_1"]["digest"]}, start=start))
    assert not {stage for stage, _ in steps} & {"import_model", "sft"}
    assert not any("iter 0" in label for stage, label in steps if stage != "import_pairs")
    assert [label for stage, label in steps if stage == "tokenize"] == [""], "own pairs have their ids"
    for step in (("gather", "iter 1"), ("score", "iter 1, pairs 0"), ("finetune", "iter 1")):
        assert (steps[step]["key"], steps[step]["digest"]) == (first.steps[step]["key"], first.steps[step]["digest"])
    table = (tmp_path / "store" / ROOT / "latest" / "report.md").read_text()
    assert "| θ_1 " in table and "| θ_2 " in table and "margin, θ_1" in table and "θ_0" not in table
    parts = {f"iter{t}/{split}_prefs-00000-of-00001.parquet" for t in (0, 1) for split in ("train", "test")}
    assert {name for name, repo in pushed().items() if repo == "acme/p"} == {*parts, "README.md"}


def tokens_of_text(pairs: Path, model: Path, out: Path) -> list[bytes]:
    """The token files of a pairs tree's texts under the tiny profile, as the stage makes them."""
    out.mkdir()
    chat = parse(TINY, "here").chat
    config = tokenize.Config(chat=chat, max_rejected=0.5)
    tokenize.run({"pairs": pairs, "tokenizer": model}, config, Job(out=out, scratch=out))
    return token_bytes(out)


def token_bytes(tree: Path) -> list[bytes]:
    return [(tree / name).read_bytes() for name in token_file.FILES.values()]


@pytest.mark.full
def test_run_directly_at_finetune_trains_on_the_same_texts(first, compute, pushed, tmp_path):
    """Catches: pairs in the published form that train in another order or with other ids; answers that are generated
    although their pairs are there; an evaluation that takes the imported model for θ_0's successor; a push that finds
    no pairs where all of them were imported."""
    model = tmp_path / "tiny-SPIN-iter0"
    model.mkdir()
    for pattern in SETTINGS + WEIGHTS:
        for path in first.tree("finetune", "iter 0").glob(pattern):
            if path.name != "metrics.jsonl":
                shutil.copyfile(path, model / path.name)
    pairs = {t: str(first.published(t, tmp_path / f"SPIN_iter{t}")) for t in (0, 1)}
    steps = compute(profile(tmp_path / "f.yaml", model={"path": str(model)}, start={"iteration": 1, "pairs": pairs}))
    assert {stage for stage, _ in steps} == {
        "demo_rows", "reformat", "tokenize", "import_model", "import_pairs", "score", "finetune", "evaluate", "gate",
        "report",
    }  # fmt: skip
    trees, run = tmp_path / "store" / ROOT / "trees", tmp_path / "store" / ROOT / "latest"
    for t in (0, 1):
        tokens = token_bytes(trees / steps["tokenize", f"iter 1, pairs {t}"]["digest"])
        assert tokens == tokens_of_text(first.tree("gather", f"iter {t}"), model, tmp_path / f"own{t}")
    made = trees / steps["import_pairs", "iter 1, from a local copy"]["digest"]
    for path in made.glob("*.parquet"):
        assert path.read_bytes() == (first.tree("gather", "iter 1") / path.name).read_bytes()
    gate = json.loads((trees / steps["gate", "iter 1"]["digest"] / "decision.json").read_text())
    assert gate["reason"].startswith("θ_2: ") and "θ_1 stays best" in gate["reason"]
    assert (run / "best").resolve().name == steps["import_model", "θ_1, from a local copy"]["digest"]
    page = (run / "report.html").read_text()
    assert "pairs_1, 60, imported" in page and "θ_1, imported" in page and str(tmp_path) not in page
    parts = {"iter0/train_prefs-00000-of-00001.parquet", "iter1/train_prefs-00000-of-00001.parquet"}
    assert parts <= {name for name, repo in pushed().items() if repo == "acme/p"}


def test_import_from_the_hub_is_recorded_with_its_commit(first, tmp_path):
    """Catches: an import of which nobody can say later what it was: plan, record and explain name repository and
    commit; another revision is another import."""
    hub, server = start()
    try:
        place = first.published(0, tmp_path / "pairs")
        files = {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*.parquet")}
        hub.add("datasets/acme/SPIN_iter0", {**files, "README.md": b"# pairs"})
        tree = first.tree("finetune", "iter 0")
        hub.add("models/acme/tiny-iter0", {path.name: path.read_bytes() for path in tree.iterdir()})
        commits = {name: repo.refs["main"] for name, repo in hub.repos.items()}
        migrated.home(tmp_path / "prefect")
        env, store = environment(tmp_path, hub.url), str(tmp_path / "store")
        named = ["--pairs", "0=acme/SPIN_iter0@main", "--model", "1=acme/tiny-iter0"]
        done = command(["import", *named, "--store", store, "--json"], env, tmp_path)
        assert done.code == 0, done.err
        pairs, model = json.loads(done.out)
        assert pairs["from"] == f"acme/SPIN_iter0@{commits['datasets/acme/SPIN_iter0']}"
        assert model["from"] == f"acme/tiny-iter0@{commits['models/acme/tiny-iter0']}"
        assert model["digest"] == first.steps["finetune", "iter 0"]["digest"]
        explained = command(["store", "explain", pairs["key"], "--store", store], env, tmp_path).out
        assert f"source came from {pairs['from']}" in explained
        file = profile(
            tmp_path / "p.yaml",
            model={"path": "acme/tiny-iter0"},
            start={"iteration": 1, "pairs": {0: f"acme/SPIN_iter0@{pairs['from'].rpartition('@')[2]}"}},
        )
        plan = command(["plan", str(file), "--store", store], env, tmp_path)
        assert plan.code == 0, plan.err
        assert f"import_model[θ_1, from acme/tiny-iter0@{model['from'].rpartition('@')[2][:8]}]" in plan.out
        assert "cached     import_model" in plan.out
        assert f"import_pairs[iter 0, from acme/SPIN_iter0@{pairs['from'].rpartition('@')[2][:8]}]" in plan.out
        assert "finetune[iter 0]" not in plan.out and "finetune[iter 1]" in plan.out
        absent = command(["import", "--pairs", "0=acme/none", "--store", store], env, tmp_path)
        assert absent.code == 2 and "acme/none" in absent.err and absent.err.count("\n") == 1
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"start": {"iteration": 2}}, "start.iteration: 2 leaves none of the 2 iterations"),
        ({"start": {"iteration": 1}}, "start.pairs: iteration 1 trains on the pairs of iteration 0 too"),
        ({"start": {"iteration": 1, "pairs": {0: "x"}}, "sft": TINY["sft"]}, "which sft is about; leave sft out"),
        ({"start": {"pairs": {2: "x"}}}, "start.pairs.2: this run trains on the pairs of 0 to 1"),
        ({"start": {"iteration": 1, "pairs": {0: "x"}}}, "needs θ_1; name it in model.path"),
    ],
)
def test_profile_that_cannot_start_there_is_refused(changes, sentence):
    """Catches: a run that finds out after hours that its first iteration lacks pairs or has another model."""
    kept = {name: part for name, part in TINY.items() if name != "sft"}
    with pytest.raises(BadInput, match=r"^here: ") as refused:
        parse({**kept, **changes}, "here")
    assert sentence in str(refused.value)


def test_profile_that_starts_as_before_has_the_keys_it_had():
    """Catches: the new section in the payload of runs that do not use it, which would rename every run."""
    from spin_core.store.keys import config_payload

    assert "start" not in config_payload(parse(TINY, "here"))


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([], "Nothing to import"),
        (["--pairs", "org/name"], "--pairs org/name: write it as T=PLACE"),
        (["--model", "1=nowhere/at/all"], "nowhere/at/all: there is no such folder"),
        (["{tmp}"], "no folder in it has a name that ends in iter0"),
        (["--pairs", "0=" + "0" * 64], "the store has no artifact of this digest"),
        (["--pairs", "0={tmp}", "--pairs", "0={tmp}"], "pairs_0 is there twice"),
        (["--pairs", "0={tmp}"], "there is no .parquet file in it"),
    ],
)
def test_import_of_nothing_is_one_sentence(spinloop, tmp_path, args, sentence):
    """Catches: a traceback, or an import that says nothing and does nothing."""
    code, out, err = spinloop("import", *(arg.format(tmp=tmp_path) for arg in args), "--store", tmp_path / "store")
    assert code == 2 and sentence in err and err.count("\n") == 1 and not out
