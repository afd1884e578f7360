"""What `spinloop doctor` says of versions that nobody tested."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.cli.doctor import compare_versions, direct_dependencies, installed_version


def write(path: Path, **others: str) -> Path:
    """Constraints as they are installed here, but for `others`."""
    versions = {name: installed_version(name) for name in direct_dependencies()} | others
    path.write_text("# tested\n" + "".join(f"{name}=={version}\n" for name, version in versions.items() if version))
    return path


def test_version_that_was_not_tested_is_a_line_of_its_own(tmp_path: Path) -> None:
    """Catches a drift that is only seen by what fails, one hidden by a spelling (huggingface_hub), and a package that
    nothing here needs in the list."""
    file = write(tmp_path / "constraints.txt", prefect="3.8.4", unheard_of="1.0")
    assert compare_versions(file) == [
        ("-", "prefect", f"{metadata.version('prefect')} is installed; tested with 3.8.4: "
         "`pip install --constraint constraints.txt prefect` if something fails"),
    ]  # fmt: skip
    file.write_text("Huggingface_Hub==0.1\n")
    assert [name for _, name, _ in compare_versions(file)] == ["huggingface-hub"]


def test_tested_versions_are_one_line(tmp_path: Path) -> None:
    """Catches the build of torch (`+cpu`) reported as another version, and a long list where all is well."""
    (line,) = compare_versions(write(tmp_path / "constraints.txt"))
    assert line[:2] == ("ok", "tested versions") and "constraints.txt" in line[2]
    assert int(line[2].split()[1]) >= 17, line


def test_wheel_without_the_file_says_that_nothing_was_compared(tmp_path: Path) -> None:
    """Catches a traceback, and silence that reads as "all tested", outside a checkout."""
    (line,) = compare_versions(tmp_path / "constraints.txt")
    assert line[0] == "-" and "not compared" in line[2]


def test_doctor_compares(spinloop, tmp_path: Path, monkeypatch) -> None:
    """Catches a comparison that doctor does not show."""
    monkeypatch.setenv("SPINLOOP_VLLM_PYTHON", str(tmp_path / "absent" / "python"))
    with temporary_settings({PREFECT_API_URL: None}):
        code, out, err = spinloop("doctor", "--store", tmp_path / "store")
    assert code == 0, err
    assert "tested versions" in out or "tested with" in out
