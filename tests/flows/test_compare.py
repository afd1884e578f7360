"""`spinloop report` of real runs: what the page says of its run, two runs side by side, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from spin_core.store.store import Store
from tests.report.test_page import Tags, fetched


def run_of(store: Path) -> Path:
    """The folder of the latest run."""
    return (Store(store, create=False).root / "latest").resolve()


def test_page_of_a_real_run_is_complete(finished) -> None:
    """Catches a mark that is still there, links that lead nowhere, a page that loads something, and a run part without
    costs, lineage, software, or the first setting that differs from the paper's."""
    folder = run_of(finished[0])
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "spinloop:steps" not in html and fetched(html) == [] and len(html) < 2_000_000
    ids = re.findall(r' id="([^"]*)"', html)
    assert len(ids) == len(set(ids)) and set(re.findall(r'href="#([^"]*)"', html)) <= set(ids)
    text = " ".join(Tags(html).text.split())
    assert "steps were cached; the others took" in text and "tokens generated" in text
    assert "differs from the preset zephyr-7b is seed: 3 here, 42 there, and" in text
    for digest in (step["digest"] for step in finished[1] if step["stage"] in ("finetune", "gather", "reformat")):
        assert f'id="made-{digest[:12]}"' in html
    answered = re.findall(r'answered in <code>\w+</code> by <a href="#made-(\w+)">', html)
    assert set(answered) <= {step["digest"][:12] for step in finished[1] if step["stage"] in ("sft", "finetune")}
    assert answered


def test_two_runs_side_by_side(finished, run, spinloop, tmp_path) -> None:
    """Catches a comparison that names no difference, compares other models than the best, leaves no page, or hides that
    the second run had half of its steps from the store."""
    store = tmp_path / "store"
    shutil.copytree(finished[0], store, symlinks=True)
    first = run_of(store).name
    run(store, "finetune.lr=0.002")
    second = run_of(store).name
    code, out, err = spinloop("report", "--store", store, "--compare", first, second)
    assert code == 0, err
    page = Path(out.splitlines()[-1].removeprefix("Comparison: "))
    assert page.name == f"compare-{first}-{second}.html" and page.parent.name == "runs"
    html = page.read_text(encoding="utf-8")
    assert fetched(html) == []
    line = next(line for line in out.splitlines() if line.startswith("| finetune.lr"))
    assert [cell.strip() for cell in line.strip("|").split("|")] == ["finetune.lr", "0.0001", "0.002"]
    assert "finetune.lr was 0.0001 and is 0.002, the only setting that differs" in out
    assert re.search(r"on the same 12 rows|on all of the 12 rows", out) and "of it cached" in out
    code, out, _ = spinloop("report", "--store", store, "--compare", second, "latest", "--out", tmp_path / "x.html")
    assert code == 0 and "no setting differs" in out and (tmp_path / "x.html").is_file()
    assert spinloop("report", "--store", store)[0] == 0  # a page beside the runs is no run


def test_what_is_not_there_is_named(finished, spinloop, tmp_path) -> None:
    """Catches a traceback, or a page, for a run that is not there, that has no report, or whose outputs are gone, and a
    name that leads out of the store."""
    store, second = tmp_path / "store", "tiny-111111"
    shutil.copytree(finished[0], store, symlinks=True)
    first, runs = run_of(store).name, Store(store, create=False).root / "runs"
    shutil.copytree(runs / first, runs / second, symlinks=True)
    (runs / "broken-000000").mkdir()
    shutil.copytree(runs / first, tmp_path / "outside", symlinks=True)

    def error_of(*names: object) -> str:
        code, _, err = spinloop("report", "--store", store, *names)
        assert code == 2 and err.count("\n") == 1, err
        return err

    assert f"runs there: {', '.join(sorted((first, second)))}." in error_of("--compare", first, "nobody")
    assert "has not come to a report" in error_of("--compare", "broken-000000", first)
    assert "no report of such a run" in error_of("--compare", first, "../../../outside")
    assert "no report of such a run" in error_of("../../../outside")
    assert "--compare takes two runs" in error_of(first, "--compare", first, second)
    assert "--out names the page of" in error_of(first, "--out", "x.html")
    steps = json.loads((runs / first / "steps.json").read_text())
    last = next(step for step in reversed(steps) if step["stage"] == "evaluate")
    shutil.move(Store(store, create=False).tree(last["digest"]), tmp_path / "gone")
    assert "an output of evaluate is no longer in the store" in error_of("--compare", first, second)


def test_ledger_against_a_preset_on_the_terminal(finished, spinloop) -> None:
    """Catches `--preset` that lists settings of the page's preset, and an unknown one that is a traceback."""
    call: Callable = spinloop
    code, out, _ = call("report", "--store", finished[0], "--preset", "demo-tasks")
    assert code == 0 and out.startswith(
        "The first setting that differs from the preset demo-tasks is seed: 3 here, 1 there"
    )
    assert "| finetune.global_batch " in out
    assert call("report", "--store", finished[0], "--preset", "nobody")[0] == 2
