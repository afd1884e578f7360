"""What the README, the Makefile, the profiles and the CI say is there, is there; nothing knows the machine it was
written on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.architecture.scan import ROOT, tracked_files, where

# In two parts, so that this file passes its own test.
MACHINE_PATH = re.compile(rb"(?<![\w.~-])/" + rb"(?:work|root)/")
PROFILES = sorted((ROOT / "deployments" / "profiles").glob("*.yaml"))


def fenced_blocks(text: str) -> list[list[str]]:
    """Lines of each ``` block."""
    blocks: list[list[str]] = []
    inside: list[str] | None = None
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            if inside is None:
                inside = []
            else:
                blocks.append(inside)
                inside = None
        elif inside is not None:
            inside.append(line)
    return blocks


def tree_paths(lines: list[str]) -> list[str]:
    """Paths of a drawn tree below its first line. Depth is the column of the name; more names on a line count while
    they look like files."""
    paths: list[str] = []
    stack: list[tuple[int, str]] = []
    for line in lines[1:]:
        drawn = re.match(r"[\s│├└─|`+-]*", line).group()  # type: ignore[union-attr]
        names = re.match(
            r"(\S+)((?:\s+[\w.-]+(?:\.(?:py|md|yaml|yml|json|toml|jinja)|/))*)(?=\s|$)", line[len(drawn) :]
        )
        if names is None:
            continue
        while stack and stack[-1][0] >= len(drawn):
            stack.pop()
        above = stack[-1][1] if stack else ""
        entries = [above + name for name in [names.group(1), *names.group(2).split()]]
        paths += [name.rstrip("/") for name in entries]
        if entries[0].endswith("/"):
            stack.append((len(drawn), entries[0]))
    return paths


def make_commands(text: str) -> set[str]:
    """Targets of `make X` in code: fenced lines and inline code."""
    code = (
        "\n".join("\n".join(block) for block in fenced_blocks(text))
        + "\n"
        + "\n".join(re.findall(r"`([^`\n]+)`", text))
    )
    return {
        name
        for line in re.findall(r"(?m)^\s*\$?\s*make\s+([\w\s-]+?)\s*(?:#.*)?$", code)
        for name in line.split()
        if not name.startswith("-")
    }


def make_targets(text: str) -> set[str]:
    return {name for line in re.findall(r"(?m)^([\w -]+):(?!=)", text) for name in line.split()}


def pages() -> dict[str, str]:
    """README and the guides, by name."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in files}


def test_drawn_tree_is_the_real_tree():
    """Catches a page that leads to files which moved, and a folder at the top that it does not name."""
    text = pages()["docs/architecture.md"]
    block = next((b for b in fenced_blocks(text) if b and b[0].split()[:1] == ["spinloop/"]), None)
    assert block, "docs/architecture.md has no fenced block that begins with spinloop/"
    listed = tree_paths(block)
    missing = [path for path in listed if not (ROOT / path).exists()]
    assert not missing, f"docs/architecture.md lists what is not there: {missing}"
    real = {file.relative_to(ROOT).parts[0] for file in tracked_files()}
    shown = {path.split("/")[0] for path in listed}
    assert {name for name in real if name[0] != "."} == {name for name in shown if name[0] != "."}


def test_tree_paths_both_drawings_are_read():
    """Catches a parser that reads no path, with which the test above would always pass."""
    drawn = [
        "spinloop/",
        "├── flows/          the picture",
        "│   ├── spin.py     one screen",
        "│   └── cli.py",
        "├── Makefile   make test",
        "└── spin_core/",
        "    └── store/",
        "        └── fs.py  writes",
    ]
    assert tree_paths(drawn) == [
        "flows",
        "flows/spin.py",
        "flows/cli.py",
        "Makefile",
        "spin_core",
        "spin_core/store",
        "spin_core/store/fs.py",
    ]
    plain = ["spinloop/", "  tasks/        thin", "    score.py  sft.py   two of them", "  README.md"]
    assert tree_paths(plain) == ["tasks", "tasks/score.py", "tasks/sft.py", "README.md"]


def test_make_targets_of_the_pages_exist():
    """Catches a documented command that make does not know."""
    there = make_targets((ROOT / "Makefile").read_text(encoding="utf-8"))
    wanted = {name: make_commands(text) for name, text in pages().items()}
    assert wanted["README.md"] >= {"demo", "test"}
    assert not {name: sorted(own - there) for name, own in wanted.items() if own - there}


def test_readme_is_short():
    """Catches a README that grows back into the manual that it was (415 lines): guides are pages of docs/."""
    lines = pages()["README.md"].splitlines()
    assert len(lines) <= 170 and not [line for line in lines if len(line) > 100]


def test_make_commands_and_targets_are_read():
    """Catches parsers that find nothing, and prose ("make a model") read as a command."""
    assert make_commands("make a model\n```\n$ make demo  # tiny\nmake -j2 test\n```\nthen `make check`.") == {
        "demo",
        "test",
        "check",
    }
    assert make_targets(".PHONY: x\nA := 1\ntest check: dep\n\tmake other\n") == {"test", "check"}


def test_ci_runs_the_tests():
    """Catches a CI that passes without running the suite."""
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert any(re.match(r"\s*(?:exec\s+)?make\b[^#|]*\btest\b(?!\s*\|\|)", line) for line in lines), (
        ".ci/run has no line that runs `make test`"
    )
    assert os.access(ROOT / ".ci" / "run", os.X_OK), ".ci/run is not executable"


def test_installed_package_has_its_data_files():
    """Catches a template or a table that a checkout finds beside its module and an installation does not."""
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"][
        "package-data"
    ]
    there = {
        file for name, ends in packaged.items() for end in ends for file in ROOT.joinpath(*name.split(".")).glob(end)
    }
    files = (file for file in tracked_files() if where(file).partition("/")[0] in ("flows", "tasks", "spin_core"))
    assert {where(file) for file in files if file.suffix != ".py"} <= {where(file) for file in there}


def test_there_are_profiles():
    """Catches a moved folder, with which the test below would check nothing."""
    assert PROFILES


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_profile_validates(path: Path):
    """Catches a shipped profile with a field that was renamed since."""
    from spin_core.config.profile import load_profile

    load_profile(str(path))


def package_hosts() -> set[str]:
    """Hosts of this machine's package indexes, from pip's settings and the environment; the public ones aside."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    texts = [listed, *(value for name, value in os.environ.items() if re.search(r"INDEX|REGISTRY|PROXY", name, re.I))]
    for file in (Path.home() / ".npmrc", Path("/etc/pip.conf"), Path.home() / ".config" / "pip" / "pip.conf"):
        texts.append(file.read_text(errors="replace") if file.is_file() else "")
    hosts = {urlsplit(url).hostname or "" for text in texts for url in re.findall(r"https?://[^\s'\"]+", text)}
    return {
        host
        for host in hosts
        if "." in host and host not in {"pypi.org", "files.pythonhosted.org", "download.pytorch.org", "127.0.0.1"}
    }


def test_tracked_files_know_nothing_of_this_machine():
    """Catches a path or a package index of the author's machine in code, docs or data: it would fail, or leak,
    anywhere else."""
    hosts = [host.encode() for host in package_hosts()]
    bad = []
    for file in tracked_files():
        data = file.read_bytes()
        bad += [
            f"{where(file)}: {data[max(0, hit.start() - 20) : hit.end() + 20]!r}" for hit in MACHINE_PATH.finditer(data)
        ]
        bad += [f"{where(file)}: names a package index of this machine" for host in hosts if host in data]
    assert not bad, "\n".join(bad[:40])


def test_machine_path_is_seen_and_others_pass():
    """Catches a pattern that matches nothing, or a URL and a relative path too."""
    for path in (b"cd /" + b"work/main", b'"/' + b"root/.cache"):
        assert MACHINE_PATH.search(path)
    for path in (b"see docs/wo" + b"rk/x", b"$HOME/ro" + b"ot/y", b"/workers/", b"a.b/wo" + b"rk/c"):
        assert not MACHINE_PATH.search(path)
