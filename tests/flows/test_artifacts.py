"""What a run leaves in the Prefect UI, read from a real server."""

from __future__ import annotations

import json
import logging
import re
import shutil
import socket
import time
import urllib.request
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from prefect import flow, task
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

from spin_core.analysis import forecast
from spin_core.config.finetune import Finetune
from spin_core.config.generate import Decoding
from spin_core.config.profile import load_profile
from spin_core.job import Entry, Job
from spin_core.report import run_card
from spin_core.runtime.child import Children
from spin_core.store.store import Store
from tasks.runner import artifacts, meters
from tasks.runner.progress import Progress
from tasks.runner.run import Run, card

KINDS = ("answers", "curves", "iterations", "lineage", "pairs")


def on_server(server: str, key: str) -> list[dict]:
    """The artifacts with a key, newest first."""
    query = {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC"}
    request = urllib.request.Request(
        f"{server}/artifacts/filter", json.dumps(query).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        pages: list[dict] = json.load(answer)
    return pages


@pytest.fixture
def profile(tiny: Path, tmp_path: Path) -> Callable[[str], Path]:
    """The tiny profile under a name of its own, so that its artifacts are of one test."""

    def write(name: str) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(tiny.read_text()) | {"name": name}))
        return path

    return write


@pytest.fixture
def two_words(finished, server, spinloop, profile, tmp_path, monkeypatch) -> tuple[Path, Callable[[], None]]:
    """A copy of the finished store in which the second finetune is to run again, and what runs a profile there."""
    store = tmp_path / "store"
    shutil.copytree(finished[0], store, symlinks=True)
    key = next(step["key"] for step in finished[1] if (step["stage"], step["label"]) == ("finetune", "iter 1"))
    (store / "spinloop-store-v1" / "records" / "finetune" / f"{key}.json").unlink()
    path = profile("two.words")

    def run() -> None:
        code, _, err = spinloop("run", path, "--store", store)
        assert code == 0, err

    monkeypatch.setenv("SPINLOOP_REPORTS_URL", "http://reports.example:8000/runs/")
    run()
    return store, run


def test_run_leaves_its_pages_and_profiles_do_not_mix(finished, two_words, server, monkeypatch) -> None:
    """Catches a page that is missing, empty, larger than a server takes, or of no flow run; a table without the run's
    own sentence; keys that change from run to run or that two profiles share; a cached run that shows nothing or says
    that it ran; and a report's link that is not there or is made of what is no address."""
    store, again = two_words
    before = len(on_server(server, "tiny-lineage"))  # other tests run that profile on this server
    root = Store(store, create=False).root
    steps = json.loads((root / "latest" / "steps.json").read_text())
    sentence = json.loads((root / "trees" / steps[-1]["digest"] / "report.json").read_text())["sentence"]
    (flow_run,) = {page["flow_run_id"] for page in on_server(server, "two-words-iterations")}
    pages = {}
    for kind in KINDS:
        (pages[kind],) = on_server(server, f"two-words-{kind}")
    for page in pages.values():
        assert page["type"] == "markdown" and 100 < len(page["data"]) < 200_000
        assert page["flow_run_id"] == flow_run
    assert sentence[:30] in pages["iterations"]["data"]
    assert re.search(r"spinloop report two\.words-[0-9a-f]{6}`", pages["iterations"]["data"])
    digest = next(step["digest"] for step in steps if step["state"] == "ran")
    assert digest[:7] in pages["lineage"]["data"]
    assert pages["lineage"]["data"].count("· ran") == 1 and "· Cached" in pages["lineage"]["data"]

    monkeypatch.setenv("SPINLOOP_REPORTS_URL", "javascript:alert(1)")
    again()
    assert len(on_server(server, "tiny-lineage")) == before
    for kind in KINDS:
        assert len(on_server(server, f"two-words-{kind}")) == 2, kind
    shown = on_server(server, "two-words-lineage")[0]["data"]
    assert "· Cached" in shown and "· ran" not in shown
    (link,) = on_server(server, "two-words-report")
    assert re.fullmatch(
        r"\[Report of (two\.words-\w{6})\]\(http://reports\.example:8000/runs/\1/report\.html\)", link["data"]
    )


def revived(store: Path, steps: list[dict], profile: Path) -> Run:
    """The run that left `steps` in a store, as it was before it ended."""
    config, base = load_profile(str(profile))
    run = Run(config, Store(store, create=False), Children(1), base)
    run.ledger = [Entry.from_json(step) for step in reversed(deepcopy(steps))]  # other tests read them, too
    run.titles = [entry.title for entry in reversed(run.ledger)]
    return run


def test_form_of_a_decision(finished, server, profile) -> None:
    """Catches a form without the figures and the samples that the decision is about, or without what score said of the
    iteration before: of its newest pairs and no others, and that it was unlikely to pay; a run so far without pages."""
    store, steps = finished
    run = revived(store, steps, profile("so-far"))

    @flow
    def between(t: int) -> str:
        return artifacts.so_far(run, run.store.tree(steps[-1]["digest"]), t)

    text = between(1)
    assert len(text) <= 4000 and "iteration 1" in text and "*go on*" in text and "*stop here*" in text
    assert "θ\\_2" in text and "| prompt | real |" in text and "| model |" in text
    assert [len(on_server(server, f"so-far-{kind}")) for kind in KINDS] == [1] * len(KINDS)
    scores = {entry.label: entry for entry in run.ledger if entry.stage == "score"}
    said = forecast.sentences(scores["iter 0, pairs 0"].summary, Finetune(), Decoding())
    assert len(said) == 2 and f"Iteration 0, before its training: {' '.join(said)}" in re.sub(
        r"[\\\u200b\u2060]", "", text
    )
    assert "unlikely to pay" not in text and scores.keys() == {"iter 0, pairs 0", "iter 1, pairs 0", "iter 1, pairs 1"}
    scores["iter 1, pairs 1"].summary["forecast"] = {"identical": 0.9, "preferred": 0.08, "entropy": 0.1}
    text = re.sub(r"[\\\u200b\u2060]", "", between(2))
    assert "Iteration 1, before its training: Of the training pairs 90.0 % are identical" in text
    assert text.count("Of the training pairs") == 1
    assert "At best 2.0 % of the pairs teach. This iteration is unlikely to pay: stop here" in text


def test_page_that_fails_is_a_warning(finished, server, profile, caplog, tmp_path) -> None:
    """Catches a run that fails, with its work done, because of what the UI was to show; and pages that are missing
    without a word."""
    store, steps = finished
    run = revived(store, steps, profile("broken"))
    tree = tmp_path / steps[-1]["digest"]
    shutil.copytree(run.store.tree(tree.name), tree)
    (tree / "report.json").chmod(0o644)
    (tree / "report.json").write_text("{")

    @flow
    def ends() -> str:
        artifacts.show(run, tree, run.store.root / "runs" / "x")
        return "done"

    assert ends() == "done"
    (line,) = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert "(JSONDecodeError: " in line.getMessage() and "its report is whole" in line.getMessage()


def test_card_that_fails_is_a_warning(finished, server, caplog) -> None:
    """Catches a run that fails, with its work done, because its model card cannot be written."""
    store = Store(finished[0], create=False)
    file = (store.root / "latest").resolve() / run_card.NAME
    original = file.read_bytes()
    file.unlink()
    (file / "in the way").mkdir(parents=True)

    @flow
    def ends() -> str:
        card(store, file.parent.name)
        return "done"

    try:
        assert ends() == "done"
    finally:
        shutil.rmtree(file)
        file.write_bytes(original)
    (line,) = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert "no model card (StoreError: " in line.getMessage() and f"{file}: Is a directory" in line.getMessage()


def work(progress: Progress, title: str, seconds: float) -> float:
    """A step of so many seconds; the longest time that one event took it."""
    worst = 0.0

    @task(name=title)
    def step() -> None:
        nonlocal worst
        job = Job(out=Path(), scratch=Path(), send=lambda event: progress(title, event))
        with job.progress("scoring", 50, "pairs") as bar:
            for _ in range(50):
                time.sleep(seconds / 50)
                began = time.monotonic()
                bar._sent = 0.0  # every event goes out
                bar.advance(loss=float("nan"))
                worst = max(worst, time.monotonic() - began)

    step()
    return worst


def test_long_step_shows_how_far_it_is(server, monkeypatch) -> None:
    """Catches a long step without progress, one that stays below 100 at its end, and an artifact for every short
    step."""
    monkeypatch.setattr(meters, "EVERY", 0.6)
    progress = Progress()
    progress.meters.profile = "long"

    @flow
    def run() -> None:
        work(progress, "score[iter 0, pairs 0]", 2.0)
        monkeypatch.setattr(meters, "EVERY", 30.0)
        work(progress, "gather[iter 0]", 0.2)
        progress.close()

    run()
    (shown,) = on_server(server, "long-progress-score")
    assert shown["type"] == "progress" and shown["data"] == 100 and shown["task_run_id"] and shown["flow_run_id"]
    assert shown["updated"] > shown["created"] and "50 of 50 pairs" in shown["description"]
    assert not on_server(server, "long-progress-gather")


def test_silent_server_holds_up_no_step(server, monkeypatch) -> None:
    """Catches a step that waits for the UI's progress, and a run that does not end because of it."""
    monkeypatch.setattr(meters, "EVERY", 0.3)
    progress, worst = Progress(), []
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers

        @task
        def step() -> None:
            job = Job(out=Path(), scratch=Path(), send=lambda event: progress("score[iter 0]", event))
            # Its log would go there as well, and say on the next tests' standard error that nobody answers.
            elsewhere = {
                PREFECT_API_URL: f"http://127.0.0.1:{silent.getsockname()[1]}/api",
                PREFECT_LOGGING_TO_API_ENABLED: False,
            }
            with temporary_settings(elsewhere), job.progress("scoring", 40, "pairs") as bar:
                for _ in range(40):
                    time.sleep(0.03)
                    began = time.monotonic()
                    bar._sent = 0.0
                    bar.advance()
                    worst.append(time.monotonic() - began)

        @flow
        def run() -> float:
            step()
            began = time.monotonic()
            progress.close()
            return time.monotonic() - began

        assert meters.FLUSH - 0.1 < run() < meters.FLUSH + 1
    assert max(worst) < 0.5
