"""results.json and results.md: the machine, and one row for each check, whole on disk after each."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path

from tests.gpu.kit import commit_of
from tests.gpu.proof import Row

PACKAGES = (
    "torch", "transformers", "accelerate", "peft", "flash-attn", "liger-kernel", "vllm", "deepspeed", "bitsandbytes",
    "trl",
)  # fmt: skip


def head(device: str, tiny: bool, minutes: float, kit: Path | None = None) -> dict:
    """Which machine, which versions, which commit: no host name, user or path."""
    import torch

    from spin_core.runtime import gpus

    cards = gpus.query("name,driver_version,memory.total") if device != "cpu" else []
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "device": device,
        "rehearsal": tiny,
        "minutes": minutes,
        "card": cards[0].split(", ")[0] if cards else "none",
        "driver": cards[0].split(", ")[1] if cards else "none",
        "memory_mib": cards[0].split(", ")[2] if cards else "none",
        "cards": len(cards),
        "cuda": torch.version.cuda or "none",
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "commit": _commit(kit),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit(kit: Path | None) -> str:
    """The checkout's commit, and whether files differ from it; where there is no git, that of the kit."""
    root = Path(__file__).resolve().parents[2]
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + (", with changes" if _git(root, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return f"{commit_of(kit)} (the kit's)" if kit else "unknown"


def _git(root: Path, *command: str) -> str:
    done = subprocess.run(["git", "-C", root, *command], capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()


def write(out: Path, head: dict, rows: list[Row]) -> None:
    """Both files anew, each whole or as it was before."""
    text = json.dumps({"head": head, "rows": [row.as_json() for row in rows]}, indent=1) + "\n"
    for name, content in (("results.json", text), ("results.md", page(head, rows))):
        draft = out / f".{name}"
        draft.write_text(content, encoding="utf-8")
        os.replace(draft, out / name)


def page(head: dict, rows: list[Row]) -> str:
    """The same for people."""
    packages = ", ".join(f"{name} {version}" for name, version in head["packages"].items())
    lines = [
        "# GPU proof" + (": a rehearsal with tiny sizes, whose figures mean nothing" if head["rehearsal"] else ""),
        "",
        f"{head['date']} · {head['card']} ({head['memory_mib']} MiB, {head['cards']} in all), driver {head['driver']}, "
        f"CUDA {head['cuda']} · {head['machine']} · Python {head['python']}, {packages} · commit {head['commit']}",
        "",
        "| part | check | result | s | figures |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        figures = ", ".join(f"{name} {_shown(value)}" for name, value in row.figures.items())
        result = {True: "ok", False: f"**failed**: {row.said}", None: row.said}[row.ok]
        lines.append(f"| {row.part} | {row.name} | {_cell(result)} | {row.seconds:.1f} | {_cell(figures)} |")
    return "\n".join(lines) + "\n"


def line(row: Row) -> str:
    """The row on one line of the terminal."""
    result = {True: "ok", False: f"FAILED: {row.said}", None: row.said}[row.ok]
    figures = ", ".join(f"{name} {_shown(value)}" for name, value in row.figures.items())
    return f"  {row.seconds:6.1f} s  {row.part}.{row.name}: {result}{' · ' + figures if figures else ''}"


def _shown(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
