"""constraints.txt names versions, of all that is installed, and nothing of the machine that wrote it."""

from __future__ import annotations

import re
import tomllib

from tests.architecture.scan import ROOT

LINE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][0-9A-Za-z.!]*")


def strange_lines(text: str) -> list[str]:
    """Lines that are neither a comment nor a name with a version."""
    return [line for line in text.splitlines() if not line.startswith("# ") and not LINE.fullmatch(line)]


def canonical(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement).group()).lower()  # type: ignore[union-attr]


def constraints() -> str:
    return (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_constraints_are_names_and_versions():
    """Catches a package index, a path, a hash, an extra or a build (`+cpu`) of the machine that ran `make lock`."""
    assert not strange_lines(constraints())
    comments = "".join(line for line in constraints().splitlines() if line.startswith("#"))
    assert "make lock" in comments and not re.search(r"https?:|/\w+/", comments)
    names = [canonical(line) for line in constraints().splitlines() if not line.startswith("#")]
    assert names == sorted(set(names)), "not in the order of names, or one twice"
    assert not [name for name in names if re.match(r"nvidia-|cuda-|triton$|spinloop$|pip$", name)]


def test_strange_lines_are_seen():
    """Catches a pattern that lets everything pass."""
    strange = [
        "-i https://pypi.example.org/simple", "--hash=sha256:00", "torch==2.13.0+cpu", "a @ file:///tmp/a.whl", "b>=1",
        "c[x]==1", "./d", "e==1 --hash=sha256:00", "",
    ]  # fmt: skip
    assert strange_lines("\n".join(strange) + "\n") == strange
    assert strange_lines("# made by hand\nruamel.yaml==0.19.1\npytz==2026.6.post1\n") == []


def test_every_direct_dependency_is_constrained():
    """Catches a dependency that was added without `make lock`: a fresh machine would take whatever is newest."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *(one for name in ("dev", "s3", "eval", "browser", "trackers", "docs") for one in extras[name]),
    ]
    have = {canonical(line) for line in constraints().splitlines() if not line.startswith("#")}
    missing = {canonical(one) for one in wanted} - have - {"spinloop"}
    assert not missing, f"constraints.txt lacks {sorted(missing)}; run `make lock`"


def test_whatever_installs_takes_the_constraints():
    """Catches a make target or an image whose next build gets versions that nobody tested."""
    for name in ("Makefile", "deployments/Dockerfile"):
        text = (ROOT / name).read_text(encoding="utf-8")
        own = re.sub(
            r"(?m)^\t\.venv-(newest|oldest)/.*$", "", text
        )  # `make test-newest` and `test-oldest` are about other versions
        installs = [line for line in own.splitlines() if re.search(r"pip install\b.*--(editable|requirement)", line)]
        assert installs and all("--constraint constraints.txt" in line for line in installs), name
    made = re.findall(r"(?m)^\.venv/(?!bin)\w+:(.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert made and all("constraints.txt" in needs for needs in made)
