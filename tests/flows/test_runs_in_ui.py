"""What a person sees of a run in Prefect's UI before opening it: its name, its tag, and of a failed one what to do."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun
from prefect.runtime import flow_run

from flows.execute import title
from flows.server import deployed
from spin_core import errors
from spin_core.report.failure_page import REMEDIES, failure
from tests.flows.test_artifacts import on_server


def tagged(tag: str) -> list[FlowRun]:
    """The runs with a tag, which is sent beside the run."""
    with get_client(sync_client=True) as client:
        for _ in range(50):
            found = client.read_flow_runs(flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[tag])))
            if found:
                return found
            time.sleep(0.2)
    return []


def test_name_says_what_is_not_as_in_the_profile() -> None:
    """Catches a name without the profile or the iterations, one that says twice what it says, and one without an
    end."""
    assert title("demo", 1, ["name=demo", "iterations=1"]) == "demo, 1 iteration"
    assert title("demo", 2, ["finetune.beta=0.5"]) == "demo, 2 iterations, finetune.beta=0.5"
    assert title("demo", None, [f"{letter}=1" for letter in "abcde"]) == "demo, a=1, b=1, c=1, and 2 more"
    long = title("demo", 2, ["dataset.path=" + "x\x1b\n" * 100] * 9)
    assert len(long) < 180 and long.isprintable()


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({}, "demo, 2 iterations"),
        (
            {"settings": {"iterations": 3, "finetune": {"beta": 0.5, "lr": None}, "control": None}},
            "demo, 3 iterations, finetune.beta=0.5, control=null",
        ),
        ({"settings": {"name": "mine"}, "profile": "zephyr-7b"}, "mine, 4 iterations"),
        ({"settings": {"finetune": {"loss": "none"}}}, "demo, finetune.loss=none"),  # the flow says what is wrong
        ({"file": "/nowhere/own.yaml"}, "own"),
    ],
)
def test_name_of_a_run_from_the_form(server: str, parameters: dict[str, Any], name: str) -> None:
    """Catches a name without what was filled in, or with what was left empty, and a run that fails because of its
    name."""

    @flow(flow_run_name=deployed._name)
    def named(profile: str = "demo", file: str = "", settings: dict | None = None) -> str:
        return flow_run.name

    assert named(**parameters) == name


def test_run_has_its_settings_in_its_name_and_its_profile_as_tag(
    server: str, spinloop: Any, finished: Any, tiny: Path, tmp_path: Path
) -> None:
    """Catches a run of the command line whose `--set` is nowhere, and one that is not among those of its profile."""
    shutil.copytree(finished[0], store := tmp_path / "store", symlinks=True)
    profile = tmp_path / "seen.yaml"
    profile.write_text(tiny.read_text().replace("name: tiny", "name: seen"))
    code, _, err = spinloop("run", profile, "--store", store, "--set", "runtime.micro_tokens=512")
    assert code == 0, err
    (run,) = tagged("profile:seen")
    assert run.name == "seen, 2 iterations, runtime.micro_tokens=512"


def test_failed_step_leaves_a_page_that_says_what_to_do(server: str, spinloop: Any, tiny: Path, tmp_path: Path) -> None:
    """Catches a failed run that leaves a person with a traceback alone, and a page for each step that only had to
    wait for the one that failed."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": f"p{i}", "response": "" if i % 4 else "a"}) + "\n" for i in range(40))
    )
    profile = tmp_path / "bad.yaml"
    profile.write_text(tiny.read_text().replace("name: tiny", "name: bad.rows"))
    code, _, err = spinloop("run", profile, "--store", tmp_path / "store", "--set", f"dataset.path={rows}")
    assert code == 2
    (page,) = on_server(server, "bad-rows-failed")
    assert page["type"] == "markdown" and page["task_run_id"] and page["flow_run_id"]
    assert page["description"] == "Why reformat failed, and what to do."
    assert page["data"].startswith("**reformat did not finish.**\n\n    ")
    sentence = err.strip().splitlines()[-1].removeprefix("spinloop: ")
    said = page["data"].split("\n\n")[1]
    assert len(said.splitlines()) > 3 and " ".join(said.split()) == sentence
    assert REMEDIES[errors.BadInput] in page["data"]


@pytest.mark.parametrize(
    "kind", [errors.BadInput, errors.ChildDied, errors.Stopped, errors.StoreError, errors.StageFailed]
)
def test_page_of_a_failure_takes_no_syntax_from_its_message(kind: type[errors.SpinloopError]) -> None:
    """Catches a message that becomes a link, a heading or the end of its own block, a page without an end, and an
    error for which nothing is to be done."""
    page = failure(
        "finetune[iter 1]", "finetune", kind("# a\n```\n[x](http://evil)\n\n- <b>\n" + "y" * 9000 + "\nz" * 99)
    )
    tokens = MarkdownIt("commonmark").parse(page)
    assert [token.type for token in tokens if token.nesting >= 0] == [
        "paragraph_open", "inline", "code_block", "paragraph_open", "inline", "paragraph_open", "inline",
    ]  # fmt: skip
    assert re.search(r"\*\*What to do\.\*\* \w.{40}", page) and "{" not in page and len(page) < 40_000
    assert ("`runtime.micro_tokens`" in page) == (kind is errors.ChildDied)
