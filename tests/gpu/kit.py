"""What a bare machine lacks, in one folder below 60 MiB: `make gpu-kit` makes it, `--kit` of the proof takes it.

`wheels/`: packages that the stages import and a machine with torch, transformers, accelerate, peft and pyarrow may not
have, and those that are compared with · `deepspeed/`: its wheels, which only its own checks see, as transformers
imports it wherever it is installed · `gsm8k/`: rows · `model/`: tokenizer and settings of a real model, with its
weights where these fit · `contents.json`: commit, Python, files and sizes. Nothing of it is committed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from packaging.tags import sys_tags
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 60 << 20
NEEDED = ("pydantic", "pydantic_core", "annotated-types", "typing-inspection")
COMPARED = ("liger-kernel==0.8.5", "trl", "datasets", "dill", "multiprocess", "xxhash")
ZERO = ("hjson", "msgpack", "einops", "py-cpuinfo", "ninja")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
MODEL_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
)  # fmt: skip


def install(wheels: Path, to: Path, say: Callable[[str], None] = print) -> str:
    """Installs into the folder `to` what this interpreter lacks of a folder of wheels, without a network: its path.
    What does not fit this interpreter is named. Ends the program in one sentence where pip cannot."""
    fitting, tags = [], set(sys_tags())
    for wheel in sorted(wheels.glob("*.whl")):
        name, _, _, of = parse_wheel_filename(wheel.name)
        if _installed(name):
            continue
        if tags.isdisjoint(of):
            say(f"kit: {wheel.name} is for another Python or platform and stays out; `make gpu-kit` has --python")
        else:
            fitting.append(str(wheel))
    how = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--target", str(to)]
    command = [sys.executable, "-m", "pip", "install", *how, *fitting]
    done = subprocess.run(command, capture_output=True, text=True) if fitting else None
    if done and done.returncode:
        sys.exit(f"gpu-proof: pip could not install the kit's wheels ({' '.join(done.stderr.split())[-300:]})")
    return str(to)


def _installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def commit_of(kit: Path) -> str:
    """The commit of the checkout that the kit was made in."""
    return str(json.loads((kit / "contents.json").read_text(encoding="utf-8"))["commit"])


def make(to: Path, python: str, data: Path, model: Path | None) -> None:
    """The folder `to`, made anew. Ends the program in one sentence where it would be over the limit."""
    shutil.rmtree(to, ignore_errors=True)
    (to / "deepspeed").mkdir(parents=True)
    _download(to / "wheels", (*NEEDED, *COMPARED), python)
    _download(to / "deepspeed", ZERO, python)
    _build_deepspeed(to / "deepspeed")
    _copy_data(data, to / "gsm8k")
    _copy_model(model, to)
    files = {str(path.relative_to(to)): path.stat().st_size for path in sorted(to.rglob("*")) if path.is_file()}
    done = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True)
    contents = {"commit": done.stdout.strip() or "unknown", "python": python, "files": files}
    (to / "contents.json").write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")
    for name, size in files.items():
        print(f"{size / 2**20:7.2f} MiB  {name}")
    total = sum(files.values())
    if total > LIMIT:
        sys.exit(f"gpu-kit: {total / 2**20:.1f} MiB are over the limit of 60; leave out --model or take a smaller one.")
    print(f"{total / 2**20:7.2f} MiB in all, of at most 60: {to}")


def _download(to: Path, names: tuple[str, ...], python: str) -> None:
    platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
    how = ["--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp", *platforms]
    _pip(["download", *how, "--constraint", str(ROOT / "constraints.txt"), "--dest", str(to), *names])


def _build_deepspeed(to: Path) -> None:
    """It comes as source; without its own kernels, which no check needs, it is plain Python."""
    try:
        how = ["--no-deps", "--no-build-isolation", "--constraint", str(ROOT / "constraints.txt")]
        _pip(["wheel", *how, "--wheel-dir", str(to), "deepspeed"])
    except SystemExit as error:
        print(f"{error} Its checks will be skipped.")


def _pip(arguments: list[str]) -> None:
    environment = {**os.environ, "DS_BUILD_OPS": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [sys.executable, "-m", "pip", arguments[0], "--quiet", *arguments[1:]]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"gpu-kit: pip {arguments[0]} {arguments[-1]} failed ({' '.join(done.stderr.split())[-300:]}).")


def _copy_data(data: Path, to: Path) -> None:
    if not (data / "train.jsonl").is_file():
        print(f"gpu-kit: no train.jsonl in {data}, so the kit has no GSM8K; name its folder (--data)")
        return
    to.mkdir()
    for file in data.iterdir():
        if file.suffix == ".jsonl" or file.name == "LICENSE":
            shutil.copyfile(file, to / file.name)


def _copy_model(model: Path | None, to: Path) -> None:
    """Tokenizer and settings; the weights too, where there is room for them."""
    if model is None or not (model / "tokenizer.json").is_file():
        print("gpu-kit: no model was named (--model or $SPINLOOP_TEST_SMOLLM2), so the kit has no tokenizer")
        return
    (to / "model").mkdir()
    for name in MODEL_FILES:
        if (model / name).is_file():
            shutil.copyfile(model / name, to / "model" / name)
    weights, room = model / "model.safetensors", LIMIT - sum(p.stat().st_size for p in to.rglob("*") if p.is_file())
    if weights.is_file() and weights.stat().st_size < room - (1 << 20):
        shutil.copyfile(weights, to / "model" / weights.name)
    elif weights.is_file():
        size = weights.stat().st_size / 2**20
        print(f"gpu-kit: the weights' {size:.0f} MiB stay out: the proof takes random ones of the shape in config.json")


def unpack(kit: Path, say: Callable[[str], None]) -> list[str]:
    """The folders that go onto sys.path. Ends the program in one sentence where `kit` is none."""
    if not (kit / "contents.json").is_file():
        sys.exit(f"gpu-proof: {kit} is no kit (it has no contents.json); `make gpu-kit` makes one.")
    return [install(kit / "wheels", Path(tempfile.mkdtemp(prefix="spinloop-kit-")), say)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="make gpu-kit", description=__doc__.splitlines()[0])
    named = os.environ.get("SPINLOOP_TEST_SMOLLM2")
    parser.add_argument("to", type=Path, help="folder, made anew")
    parser.add_argument("--python", default="3.12", help="Python of the bare machine (default 3.12)")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "gsm8k", help="GSM8K's folder")
    parser.add_argument("--model", type=Path, default=Path(named) if named else None, help="a model's directory")
    args = parser.parse_args()
    make(args.to, args.python, args.data, args.model)


if __name__ == "__main__":
    main()
