"""S12: what a store holds, printed by the commands that show it: nothing that a terminal obeys."""

from __future__ import annotations

import argparse
import ast
import json
from contextlib import suppress
from pathlib import Path

import pytest

from flows.cli import keep as keep_cli
from flows.cli import store as cli
from spin_core.errors import SpinloopError
from spin_core.store.gc import gc
from spin_core.store.keys import key_of, payload
from spin_core.store.store import Store
from tests.architecture.scan import ROOT
from tests.faults.fault import Fault
from tests.security.test_content import TEXTS, obeyed

S12 = Fault("S12", "the same in records, names of runs and files of a store: ls, show, explain, du, verify, gc, pin")
PRINTED = [name for name in TEXTS if "5 MB" not in name and name != "half a surrogate"]


@pytest.mark.parametrize("name", ["colours", "screen"])
def test_terminal_escapes_in_report_md_are_escaped(name, capsys, tmp_path):
    """Catches `spinloop report` that hands a planted table to the terminal."""
    from flows.cli import report

    Store(tmp_path).write_run_file("run-1", "report.md", f"# table {TEXTS[name]}\n".encode())
    report._report(argparse.Namespace(store=str(tmp_path), compare=None, run="run-1", preset="", out=""))
    out = capsys.readouterr().out
    assert not obeyed(out) and out.startswith("# table ")


def test_hostile_store_prints_text(capsys, tmp_path):
    """Catches a label, a setting, a hub id, a name of a run or of a stray file that moves the cursor."""

    def trial(name: str) -> None:
        text = TEXTS[name]
        place = tmp_path / f"{PRINTED.index(name)}"
        store = Store(place)
        for n in range(2):
            made = payload("generate", 1, {"generate": {"a": f"{text}{n}"}}, {"model": "a" * 64})
            tree = store.new_tree()
            (tree / "file").write_bytes(text.encode())
            store.publish(made, tree, {"label": text, "seconds": 1.0, "sources": {text: [text]}})
        with suppress(OSError, ValueError):  # NUL and /
            (store.root / "runs" / text[:60]).mkdir()
            (store.root / "records" / "generate" / text[:60]).write_bytes(b"{}")
        key = key_of(made)
        how = {"store": str(place), "stage": None, "key": key, "what": key, "run": None, "deep": True}
        how |= {"keep_runs": 1, "keep": [], "quarantine": True, "dry_run": True}
        how |= {"policy": False, "older_than": None, "max_size": None, "while_used": True}
        how |= {"settings": [], "recompute": []}
        by_policy = how | {"older_than": "1d", "max_size": "1B", "keep": [], "quarantine": False}
        policies = [f"{text}={text}", f"older_than={text}", text]
        runs = {"runs": [text[:60]]}
        said = ""
        for command, args in (
            *((one, how) for one in (cli._ls, cli._show, cli._explain, cli._fetch, cli._du, cli._verify, cli._gc)),
            *((cli._gc, by_policy), (cli._gc, by_policy | {"max_size": text}), (cli._pack, how)),
            (cli._verify, how | {"deep": False, "recompute": [text]}),
            *((keep_cli._pin, how | runs), (keep_cli._policy, how | {"settings": []}), (keep_cli._unpin, how | runs)),
            *((keep_cli._policy, how | {"settings": [one]}) for one in policies),
            *((keep_cli._forget, how | one) for one in (runs, {"runs": [f"no {text}"]})),
        ):
            try:
                command(argparse.Namespace(**args))
            except SpinloopError as error:
                said += str(error)
        out = capsys.readouterr()
        assert len(out.out) > 1000 and not obeyed(said + out.out + out.err), obeyed(said + out.out + out.err)
        cli._show(argparse.Namespace(**how))
        shown = capsys.readouterr()
        assert "\nfiles are in" not in shown.out and shown.err.startswith("files are in")
        assert json.loads(shown.out)["facts"]["label"] == text, "no JSON, or another text"
        with suppress(SpinloopError):
            gc(store)

    S12.each(PRINTED, trial)


@pytest.mark.parametrize("name", ["store", "keep", "report", "push", "imports", "costs", "evaluate", "sweep"])
def test_commands_that_show_a_store_print_by_one_function(name):
    """Catches a print that was added beside `print_escaped`."""
    tree = ast.parse(Path(ROOT, "flows", "cli", f"{name}.py").read_text(encoding="utf-8"))
    bare = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "print"]
    assert not bare, f"flows/cli/{name}.py prints without print_escaped in lines {bare}"
