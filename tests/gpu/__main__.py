"""Proves CUDA: correct, fast, estimates, whole, in this order, within the minutes; writes results.json and results.md
after every check, so that an end by time-out loses nothing. Exit code 1 where a check failed; what was skipped, or not
reached, is a row and no failure. docs/gpu.md says more."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    args = parse()
    began = time.monotonic()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    paths = [str(ROOT)]
    if args.kit:
        from tests.gpu import kit

        args.kit = args.kit.resolve()
        paths += kit.unpack(args.kit, say)
    sys.path[:0] = paths
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
    if missing := [
        name
        for name in ("torch", "transformers", "accelerate", "peft", "pyarrow", "pydantic")
        if not is_installed(name)
    ]:
        sys.exit(
            f"gpu-proof: {', '.join(missing)} is not installed; `make gpu-kit` packs pydantic, and --kit names it."
        )
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu-proof: torch finds no CUDA device here; `--device cpu` rehearses every part with tiny sizes.")
    return prove(args, began)


def prove(args: argparse.Namespace, began: float) -> int:
    """Runs the parts; 1 where a check failed."""
    from tests.gpu import PARTS, results
    from tests.gpu.proof import Row
    from tests.gpu.supervise import run_part

    tiny = args.device == "cpu"
    head, rows = results.head(args.device, tiny, args.minutes, args.kit), list[Row]()
    results.write(args.out, head, rows)
    settings = {"device": args.device, "tiny": tiny, "out": str(args.out), "kit": str(args.kit) if args.kit else ""}
    ends, shares = began + 60 * args.minutes, {name: PARTS.get(name, 0.25) for name in args.parts}
    for i, part in enumerate(args.parts):
        share = shares[part] / sum(shares[name] for name in args.parts[i:])
        seconds = max(0.0, (ends - time.monotonic()) * share)
        say(f"{part}: {seconds:.0f} s")
        for row in run_part(f"tests.gpu.{part}", settings, seconds):
            rows.append(row)
            results.write(args.out, head, rows)
            say(results.line(row))
    failed = sum(row.ok is False for row in rows)
    skipped = sum(row.ok is None for row in rows)
    say(f"{len(rows)} checks: {len(rows) - failed - skipped} ok, {failed} failed, {skipped} skipped or not reached; "
        f"{args.out}/results.md")  # fmt: skip
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    """The command line."""
    from tests.gpu import PARTS

    parser = argparse.ArgumentParser(prog="python3 -m tests.gpu", description=__doc__)
    add = parser.add_argument
    add("--minutes", type=float, default=8, help="for all parts together (default 8)")
    add("--out", type=Path, default=Path("gpu-proof"), help="folder of the results (default gpu-proof)")
    add("--parts", type=lambda text: text.split(","), default=list(PARTS), help=f"default {','.join(PARTS)}")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal with tiny sizes")
    add("--kit", type=Path, help="folder that `make gpu-kit` made: wheels and data")
    return parser.parse_args()


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
