"""`spinloop doctor`: what this machine has for spinloop, what is missing, and how to get it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from spin_core.config.harness import LM_EVAL
from spin_core.engines.table import ENGINES
from spin_core.errors import SpinloopError
from spin_core.runtime import gpus
from spin_core.store.opening import exists, is_remote, open_store

CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"
"""In a checkout only: pip needs it before anything is installed, and a wheel does not have it."""
NEEDED = ("prefect", "torch", "transformers", "accelerate", "datasets", "pyarrow", "huggingface_hub", "peft")
OPTIONAL = {
    "flash_attn": "runtime.attn_implementation: flash_attention_2",
    "bitsandbytes": "finetune.lora.quantize: nf4",
    "liger_kernel": "runtime.liger",
    "lm_eval": "harness",
    "deepspeed": "finetune over several GPUs",
}

Line = tuple[str, str, str]
"""(`ok`, `missing` or `-` for what is not needed, what was looked at, what it is or what to do)."""


def diagnose(store: str) -> list[Line]:
    """Look at the interpreter, the packages, GPUs, vLLM's environment and the store. Starts vLLM's interpreter (5 to
    20 s) where there is one; writes nothing but a file that it takes away again."""
    python: Line = ("ok", "python", f"{platform.python_version()} {sys.executable}")
    none = f"none (no nvidia-smi, or CUDA_VISIBLE_DEVICES is empty); {os.cpu_count()} CPU cores are used"
    there = ", ".join(gpus.visible())
    engines = [(line[0], name, line[1]) for name, engine in ENGINES.items() if (line := engine.doctor())]
    seen: Line = ("ok", "GPUs", there) if there else ("-", "GPUs", none)
    return [python, *_packages(), *compare_versions(), seen, *engines, _store(store)]


def _packages() -> list[Line]:
    lines: list[Line] = []
    for name in NEEDED:
        try:
            lines.append(("ok", name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            lines.append(("missing", name, "`make setup` in the checkout, or install the wheel again"))
    for name, use in OPTIONAL.items():
        if find_spec(name):
            lines.append(("ok", name, f"for {use}"))
        else:
            package = f"{name}=={LM_EVAL}" if name == "lm_eval" else name.replace("_", "-")
            lines.append(("-", name, f"not installed; only for {use}: `pip install {package}`"))
    return lines


def compare_versions(constraints: Path = CONSTRAINTS) -> list[Line]:
    """Doctor's lines: one for each direct dependency that is installed in another version than was tested, or one that
    says that there is none. What only developers install is not looked at."""
    if not constraints.is_file():
        return [("-", "tested versions", "no constraints.txt, which a checkout has: not compared")]
    tested = dict(re.findall(r"^([\w.-]+)==(\S+)$", constraints.read_text(encoding="utf-8"), re.MULTILINE))
    tested = {_canonical(name): version for name, version in tested.items()}
    names = [name for name in direct_dependencies() if name in tested and installed_version(name)]
    remedy = "`pip install --constraint constraints.txt {}` if something fails"
    lines: list[Line] = [
        ("-", name, f"{installed_version(name)} is installed; tested with {tested[name]}: {remedy.format(name)}")
        for name in names
        if installed_version(name) != tested[name]
    ]
    return lines or [("ok", "tested versions", f"all {len(names)} direct dependencies are as in constraints.txt")]


def direct_dependencies() -> list[str]:
    """Canonical names of what spinloop requires, with its extras for users and without those for developers."""
    requirements = metadata.requires("spinloop") or []
    used = [one for one in requirements if not re.search(r"extra == .(dev|bench|browser)\b", one)]
    return sorted({_canonical(re.match(r"[\w.-]+", one).group()) for one in used})  # type: ignore[union-attr]


def installed_version(name: str) -> str:
    """Without the local part (`+cpu`), which says how it was built; empty where it is not installed."""
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return ""


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _store(folder: str) -> Line:
    try:
        if exists(folder):
            open_store(folder, create=False, runs=False).check_writable()
    except SpinloopError as error:
        return "missing", "store", str(error)
    if is_remote(folder):
        return _remote(folder)
    above = next(p for p in [Path(folder), *Path(folder).parents] if p.exists())
    free = shutil.disk_usage(above).free / 2**30
    if not os.access(above, os.W_OK):
        return "missing", "store", f"{above} cannot be written; name another --store"
    return "ok", "store", f"{folder}, {free:,.0f} GiB free"


def _remote(url: str) -> Line:
    from spin_core.store.cache import limit, place
    from spin_core.store.s3.objects import Objects
    from spin_core.store.store import NAME

    there = Objects(url, NAME)
    folder = place(there.url, there.endpoint())
    above = next(p for p in [folder, *folder.parents] if p.exists())
    free = shutil.disk_usage(above).free / 2**30
    return "ok", "store", f"{url}; its cache {folder} may hold {limit() / 1e9:,.0f} GB, {free:,.0f} GiB free"
