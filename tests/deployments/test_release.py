"""`make release`: a real release in a repository of its own, with real git and a real build; nothing leaves it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from tests.architecture.scan import ROOT, tracked_files

Done = subprocess.CompletedProcess[str]
KEPT = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
WHO = {f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


TAGGED = (
    "deployments/Dockerfile", "deployments/compose.yaml", "deployments/kubernetes/kustomization.yaml",
    "deployments/kubernetes/server.yaml", "deployments/kubernetes/workers.yaml", "docs/docker.md", "docs/kubernetes.md",
)  # fmt: skip
"""Files that name the image of this version."""


def _tags(file: Path) -> set[str]:
    return set(re.findall(r"(?:spinloop:|newTag: )(\d+\.\d+\.\d+)", file.read_text(encoding="utf-8")))


def _git(folder: Path, *words: str) -> str:
    env = {**KEPT, **WHO, "GIT_CONFIG_GLOBAL": os.devnull}
    return subprocess.run(["git", *words], cwd=folder, env=env, check=True, capture_output=True, text=True).stdout


def _release(folder: Path, version: str, python: str = sys.executable) -> Done:
    env = {**KEPT, **WHO, "GIT_CONFIG_GLOBAL": os.devnull, "VERSION": version, "PYTHON": python}
    command = [folder / "deployments" / "release.sh"]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def origin(tmp_path_factory) -> Path:
    """This checkout's files as they are now, in a repository of one commit on main."""
    folder = tmp_path_factory.mktemp("origin")
    for file in tracked_files():
        if not file.is_relative_to(ROOT / "tests"):
            to = folder / file.relative_to(ROOT)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, to, follow_symlinks=False)
    shutil.copy2(ROOT / "spin_core" / "deployments", folder / "spin_core", follow_symlinks=False)  # a link
    log = folder / "CHANGELOG.md"  # right after a release nothing is unreleased here
    text = log.read_text(encoding="utf-8").replace("## [Unreleased]\n", "## [Unreleased]\n\n### Fixed\n- It.\n", 1)
    log.write_text(text, encoding="utf-8")
    _git(folder, "init", "--quiet", "--initial-branch", "main")
    _git(folder, "add", "--all")
    _git(folder, "commit", "--quiet", "--message", "all")
    return folder


@pytest.fixture
def checkout(origin: Path, tmp_path: Path) -> Path:
    """A clone of it."""
    _git(tmp_path, "clone", "--quiet", str(origin), "checkout")
    return tmp_path / "checkout"


def _state(folder: Path) -> tuple[str, ...]:
    refs = _git(folder, "for-each-ref", "--format=%(refname) %(objectname)")
    return refs, _git(folder, "status", "--porcelain"), _git(folder, "diff", "HEAD")


def test_release_is_one_commit_a_tag_a_wheel_and_notes(checkout: Path) -> None:
    """Catches a version that one file does not get, notes of another version or with its heading, a wheel of what an
    earlier build left, a release that leaves changes or pushes."""
    before, remote = _git(checkout, "rev-parse", "HEAD"), _git(checkout, "ls-remote", "origin")
    said = (checkout / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased = re.search(r"(?s)## \[Unreleased\]\n(.*?)(?=\n## \[|\Z)", said)[1].strip()  # type: ignore[index]
    left = checkout / "build" / "lib" / "flows"
    left.mkdir(parents=True)
    (left / "of_an_earlier_build.py").write_text("")
    done = _release(checkout, "7.8.9")
    assert done.returncode == 0, done.stderr
    assert _git(checkout, "rev-parse", "HEAD^") == before == _git(checkout, "rev-parse", "origin/main")
    assert _git(checkout, "cat-file", "-t", "v7.8.9") == "tag\n" and _git(checkout, "ls-remote", "origin") == remote
    assert _git(checkout, "rev-parse", "v7.8.9^{commit}") == _git(checkout, "rev-parse", "HEAD")
    assert _git(checkout, "status", "--porcelain") == ""
    changed = _git(checkout, "diff", "--name-only", "HEAD^").split()
    assert changed == sorted(["CHANGELOG.md", "CITATION.cff", "pyproject.toml", *TAGGED])
    assert {tag for file in TAGGED for tag in _tags(checkout / file)} == {"7.8.9"}
    cited = yaml.safe_load((checkout / "CITATION.cff").read_text(encoding="utf-8"))
    day = cited["date-released"]
    assert cited["version"] == "7.8.9" and abs(datetime.now(UTC).date() - day) <= timedelta(days=1)
    assert tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"] == "7.8.9"
    now = (checkout / "CHANGELOG.md").read_text(encoding="utf-8")
    assert now == said.replace("## [Unreleased]\n", f"## [Unreleased]\n\n## [7.8.9] - {day}\n")
    assert (checkout / "dist" / "spinloop-7.8.9.md").read_text(encoding="utf-8").strip() == (
        f"# spinloop 7.8.9\n\n{unreleased}"
    )
    (wheel,) = (checkout / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "flows/spin.py" in names and "spin_core/deployments/profiles/demo.yaml" in names
    assert not [name for name in names if "of_an_earlier_build" in name]
    metadata = zipfile.ZipFile(wheel).read("spinloop-7.8.9.dist-info/METADATA").decode()
    assert "\nVersion: 7.8.9\n" in metadata
    again = _release(checkout, "7.8.10")
    assert again.returncode == 2 and "nothing under [Unreleased]" in again.stderr


def _branch(checkout: Path) -> None:
    _git(checkout, "switch", "--quiet", "--create", "other")


def _dirty(checkout: Path) -> None:
    (checkout / "new.txt").write_text("not committed")


def _tagged(checkout: Path) -> None:
    _git(checkout, "tag", "v7.8.9")


@pytest.mark.parametrize(
    "version, change, why",
    [
        ("", None, "give MAJOR.MINOR.PATCH"),
        ("v7.8", None, "give MAJOR.MINOR.PATCH"),
        ("0.0.9", None, "is not above"),
        ("7.8.9", _branch, "not on the branch main"),
        ("7.8.9", _dirty, "not committed"),
        ("7.8.9", _tagged, "a tag v7.8.9 already"),
    ],
)
def test_release_that_is_refused_changes_nothing(checkout: Path, version: str, change, why: str) -> None:
    """Catches a check that comes after the first change, or is not there."""
    if change:
        change(checkout)
    before = _state(checkout)
    done = _release(checkout, version)
    assert done.returncode == 2 and why in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert _state(checkout) == before and not (checkout / "dist").exists()


def test_release_whose_build_fails_changes_nothing(checkout: Path) -> None:
    """Catches a version that is committed or tagged, and has no wheel."""
    before = _state(checkout)
    assert _release(checkout, "7.8.9", python="/bin/false").returncode != 0
    assert _state(checkout) == before


def test_citation_and_images_have_the_version_of_the_package() -> None:
    """Catches a version that is raised by hand in one of these files, and a file that names an image and is not known
    to the release."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert cited["version"] == project["version"] and cited["license"] == project["license"]
    texts = (*(ROOT / "deployments").rglob("*"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md")
    tagged = {str(file.relative_to(ROOT)): tags for file in texts if file.is_file() and (tags := _tags(file))}
    assert tagged == {file: {project["version"]} for file in TAGGED}


def test_make_release_hands_on_the_version() -> None:
    """Catches a target that releases without the version, or the version of the environment alone."""
    command = ["make", "--dry-run", "--assume-old", ".venv/dev", "release", "VERSION=7.8.9"]
    shown = subprocess.run(command, cwd=ROOT, env=KEPT, capture_output=True, text=True, check=True).stdout
    assert 'VERSION="7.8.9"' in shown and "deployments/release.sh" in shown
