"""Names that try to leave their place (S7): refused where they name something, and nothing is written elsewhere."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from spin_core.config.profile import load_profile, parse
from spin_core.errors import BadInput, SpinloopError
from spin_core.sources.resolve import SourceKind, resolve
from spin_core.store.store import Store
from tests.faults.fault import Fault

S7 = Fault("S7", "a run's name in a profile: ../, absolute, NUL, 300 characters, look-alikes, %2e%2e, devices")
S7_PATHS = Fault("S7", "the same as path of a model, a data set and a profile")
S7_RUNS = Fault("S7", "the same as a run's name looked up in the store: nothing is opened outside of it")

NAMES = [
    "..", ".", "", "../x", "../../x", "a/../../b", "a/b", "/", "/etc/passwd", "//host/x", "~", "~root",
    "~nobody-here/x",
    "a\0b", "\0", "con ", " a", "a b", "a\tb", "a\nb", "-rf", "--help", ".hidden", "..a", "A", "x" * 42, "x" * 300,
    "x" * 5000, "a.", "a..", "a/", "a\\b", "..\\x", "C:\\x", "C:x", "\\\\host\\x", "%2e%2e", "%2e%2e%2fx", "..%2fx",
    "a%00", "..;/x", "${HOME}", "$(id)", "`id`", "a;id", "a|id", "*", "?", "[a]", "{a,b}", "file:///etc/passwd",
    "http://x/y", "．．/x", "‥/x", "a∕b", "a⁄b", "ａ", "а", "é", "e\u0301", "a\u202eb", "a\u200bb", "a\u2028b",
    "\ud800",
    "\x1b[31m", "😀", "0x", "latest/../x",
]  # fmt: skip
KINDS: tuple[SourceKind, ...] = ("model", "dataset", "tasks")
LEGAL = {"a.", "a..", "0x", "x" * 41, "latest"}
DATA = {"model": {"path": "m"}, "dataset": {"path": "d"}}


def test_names_of_runs_are_refused_unless_plain():
    """Catches a name that becomes a path, an option, a line or a colour."""
    assert len(NAMES) >= 60

    def trial(name: str) -> None:
        if name in LEGAL:
            assert parse({**DATA, "name": name}, "p").name == name
            return
        with pytest.raises(BadInput, match=r"p: name: ") as raised:
            parse({**DATA, "name": name}, "p")
        assert str(raised.value).isprintable() and len(str(raised.value)) < 500

    S7.each(NAMES, trial)


def test_paths_that_are_no_path_are_one_sentence(tmp_path, monkeypatch):
    """Catches a traceback for a name that no file system takes, and one that is sent to a hub or opened."""
    monkeypatch.setattr("socket.socket.connect", lambda *a: pytest.fail("it went to the network"))
    monkeypatch.chdir(tmp_path)

    def trial(name: str) -> None:
        for kind in KINDS:
            with pytest.raises(BadInput) as raised:
                resolved = resolve(name, kind, "", tmp_path)
                pytest.fail(f"{kind} {name!r} is {resolved}")
            assert str(raised.value).isprintable()
        with pytest.raises(BadInput) as raised:
            load_profile(name)
        assert str(raised.value).isprintable()

    # An empty folder of the machine is one sentence too, but not in a second where it is all of a disk.
    S7_PATHS.each([name for name in NAMES if name not in ("/", "~", "~root", "..", "../..")], trial)


@pytest.fixture
def opened():
    """Every path that this process opens for writing, makes, renames, links or removes."""
    seen: list[str] = []
    on = [True]

    def hook(event: str, args: tuple) -> None:
        if not on[0]:
            return
        if event == "open" and isinstance(args[2], int):
            if args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                seen.append(os.fsdecode(args[0]) if isinstance(args[0], str | bytes) else "")
        elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"):
            seen.extend(os.fsdecode(arg) for arg in args[:2] if isinstance(arg, str | bytes | os.PathLike))

    sys.addaudithook(hook)
    yield seen
    on[0] = False


def test_names_looked_up_in_a_store_touch_nothing_outside(tmp_path, opened, monkeypatch):
    """Catches `runs/../../x`: a name from the command line or a request that is joined to a path."""
    from flows.cli.__main__ import main

    root = tmp_path / "inside" / "store"
    Store(root)
    outside = {path for path in tmp_path.rglob("*") if root not in path.parents}
    opened.clear()

    def trial(name: str) -> None:
        for command in (["report", name], ["store", "show", name], ["compare", name, name]):
            with pytest.raises((SystemExit, SpinloopError)) as raised:
                main([*command, "--store", str(root)])
            assert not isinstance(raised.value, SystemExit) or raised.value.code

    S7_RUNS.each([name for name in NAMES if name and not name.startswith("-") and "\0" not in name], trial)
    assert {path for path in tmp_path.rglob("*") if root not in path.parents} == outside
    assert not outside_of(root, opened)
    # The hook sees what it is there for: a file made beside the store by a relative path, and one removed.
    monkeypatch.chdir(tmp_path)
    Path("planted").write_text("x")
    (tmp_path / "planted").unlink()
    assert outside_of(root, opened) == [str(tmp_path / "planted")] * 2


def outside_of(root: Path, opened: list[str]) -> list[str]:
    """What was opened outside of the store, but for the null device and compiled modules of Python's own."""
    paths = [os.path.abspath(path) for path in opened if path]
    compiled = (str(Path(__file__).resolve().parents[2]), sys.prefix, sys.base_prefix)
    return [
        path
        for path in paths
        if not Path(path).is_relative_to(root)
        and path != os.devnull
        and not ("__pycache__" in Path(path).parts and path.startswith(compiled))
    ]
