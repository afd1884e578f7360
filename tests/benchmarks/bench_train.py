"""How fast, and in how much memory, is a SPIN iteration's training: the reference's way, TRL's DPOTrainer, spinloop?

`make bench-train` runs the ways in turn (A B C A B C …), each in a process of its own on the same token ids in the same
order, checks that their loss curves are the same, and writes bench_train.md and bench_train.json beside this file.
`--help` lists what can be chosen. Spinloop and TRL score the opponent once, in their time; loading is in nobody's.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from tqdm import tqdm

from spin_core.config.chat import ChatSection
from spin_core.errors import BadInput
from spin_core.sources.resolve import resolve
from tests.benchmarks import bench_groups, bench_prefix
from tests.benchmarks.bench_tables import NAMES, page, ratios, spread, verdicts

HERE = Path(__file__).parent
SETS = {"short": "short", "long": "long", "short-1": "short", "long-1": "long"}
"""Set → which prompts. With -1, an iteration after the first: the pairs of t and t−1, two to each prompt."""
LOSS_TOLERANCE = {"float32": 2e-3, "bfloat16": 0.1}
"""Largest difference of a step's loss to the reference's. bfloat16 rounds log-probs by tenths of a nat."""


def main() -> None:
    args = parse()
    try:
        report = measure(args)
    except BadInput as error:
        sys.exit(f"bench-train: {error}")
    text = page(report)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "bench_train.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.out / "bench_train.md").write_text(text)
    print(text)
    for line in verdicts(report["ratios"]):
        print(line, file=sys.stderr)


def parse() -> argparse.Namespace:
    """The command line."""
    listed = lambda text: text.split(",")  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="directory or hub id")
    add("--data", default="openai/gsm8k/main", help="rows with question and answer: file, folder or hub id")
    add("--pairs", type=int, default=8, help="pairs of each set (default 8)")
    add("--batch", type=int, default=4, help="pairs of an optimiser step (default 4)")
    add("--micro", type=int, default=4, help="pairs in a forward pass of the ways that pad (default 4)")
    add("--micro-tokens", type=int, default=0, help="runtime.micro_tokens of ours; 0: its default")
    add("--epochs", type=int, default=3)
    add("--repeats", type=int, default=3)
    add("--lr", type=float, default=5e-7)
    add("--threads", type=int, default=os.cpu_count() or 1)
    add("--sets", type=listed, default=list(SETS), help="of short,long (iteration 0), short-1,long-1 (later ones)")
    add("--ways", type=listed, default=["reference", "trl", "ours", "ours-bf16"], help=f"of {','.join(NAMES)}")
    numbers = lambda text: [int(one) for one in text.split(",") if one]  # noqa: E731
    add("--groups", type=numbers, default=[2, 4], help="generated answers to a prompt, by prompts and by pairs")
    add("--measure", type=listed, default=["speed", "memory"], help="of speed,memory")
    add("--peak-tflops", type=float, default=989.0, help="of the GPU in bfloat16, dense (default: H100)")
    add("--out", type=Path, default=HERE, help="folder of bench_train.md and .json")
    return parser.parse_args()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that was requested. Raises BadInput for what cannot be run, or is not the same training."""
    check(args)
    model = Path(resolve(args.model, "model", "", Path()).path)
    data = Path(resolve(args.data, "dataset", "", Path(), "train").path)
    works = make_works(args, model, data)
    report = describe(args, model)
    left = steps_of(args, next(iter(works.values())))
    with tqdm(total=left, unit="step", desc="bench-train", file=sys.stderr) as bar:
        for name, (work, sizes) in works.items():
            common = bench_prefix.prefix_of((len(p), [r, g]) for p, r, g in work.rows)
            part = {"lengths": sizes, "useful_tokens": work.useful_tokens, "runs": {}, "memory": {}, "speed": {}}
            part["common_prefix"] = common._asdict()
            report["sets"][name] = part
            if "speed" in args.measure:
                part["runs"] = run_in_turn(args, name, work, bar)
                part["speed"] = speed(args, part["runs"], work, report["settings"], report["machine"]["gpu"])
            if "memory" in args.measure:
                own = [group for group in work.together if group[-1] < work.batch]
                small = replace(work, rows=work.rows[: work.batch], together=own, epochs=2, scored=False)
                for way in args.ways:
                    bar.set_postfix_str(f"{name}, {way}, memory")
                    part["memory"][way] = child(way, small, True, bar)
        if "speed" in args.measure and args.groups:
            bar.set_postfix_str("groups of a prompt")
            first = next(iter(works.values()))[0]
            report["groups"] = bench_groups.measure(
                first, make_groups(args, model, data), args.repeats, lambda work: child("ours", work, False, bar)
            )
    report["ratios"] = ratios(report)
    return report


def make_groups(args: argparse.Namespace, model: Path, data: Path) -> dict[int, Any]:
    """Of each number of answers its pairs, as many as `--pairs` says, and which of them have one prompt."""
    from spin_core.modeling.loading import load_chat
    from tests.benchmarks.bench_data import MAX_PROMPT, read_rows

    chat, rows = load_chat(model, ChatSection(max_prompt_length=MAX_PROMPT)), read_rows(data, args.pairs)
    return {n: bench_groups.make_groups(rows, chat, max(1, args.pairs // n), n) for n in args.groups}


def check(args: argparse.Namespace) -> None:
    """Raises BadInput for settings that do not fit."""
    for given, known in ((args.sets, list(SETS)), (args.ways, list(NAMES)), (args.measure, ["speed", "memory"])):
        if wrong := [name for name in given if name not in known]:
            raise BadInput(f"{wrong[0]!r} is none of {', '.join(known)}")
    args.micro = min(args.micro, args.batch)
    if min(args.batch, args.micro, args.pairs, args.epochs, args.repeats, args.threads) < 1:
        raise BadInput("--pairs, --batch, --micro, --epochs, --repeats and --threads must be at least 1")
    if args.pairs % args.batch or args.batch % args.micro:
        raise BadInput(
            f"--pairs {args.pairs} must be a multiple of --batch {args.batch}, and --batch of --micro {args.micro}"
        )
    if args.batch % 2 and any(name.endswith("-1") for name in args.sets):
        raise BadInput(f"--batch {args.batch}: a step of an iteration after the first has whole prompts of two pairs")
    if any(way.startswith("trl") for way in args.ways) and not importlib.util.find_spec("trl"):
        raise BadInput("TRL is not installed; run pip install -e '.[bench]', or leave trl out of --ways")


def make_works(args: argparse.Namespace, model: Path, data: Path) -> dict[str, Any]:
    """Of each set its `Work` in float32, and the lengths of its pairs."""
    import torch

    from spin_core.modeling.loading import load_chat
    from tests.benchmarks.bench_data import MAX_PROMPT, lengths, make_pairs, read_rows
    from tests.benchmarks.bench_work import Work

    together: list[list[int]]
    chat, rows = load_chat(model, ChatSection(max_prompt_length=MAX_PROMPT)), read_rows(data, args.pairs)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    works = {}
    for name in args.sets:
        pairs, together = make_pairs(rows, chat, args.pairs, SETS[name], seed=1), []
        if name.endswith("-1"):
            pairs, together = bench_groups.make_groups(rows, chat, args.pairs // 2, 2, SETS[name])
        work = Work(
            model=str(model), rows=pairs, pad_id=chat.tokenizer.pad_token_id, batch=args.batch, micro=args.micro,
            epochs=args.epochs, lr=args.lr, precision="float32", device=device, threads=args.threads,
            micro_tokens=args.micro_tokens, together=together,
        )  # fmt: skip
        works[name] = work, lengths(pairs)
    return works


def run_in_turn(args: argparse.Namespace, name: str, work: Any, bar: tqdm) -> dict[str, list[dict[str, Any]]]:
    """Way → its repeats' figures. Raises BadInput at the first loss curve that is not the first way's."""
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in args.ways}
    for repeat in range(args.repeats):
        for way in args.ways:
            bar.set_postfix_str(f"{name}, {way}, repeat {repeat + 1} of {args.repeats}")
            load = os.getloadavg()[0]
            run = child(way, work, False, bar)
            expected = runs[args.ways[0]][0]["losses"] if runs[args.ways[0]] else run["losses"]
            difference = loss_difference(run["losses"], expected)
            tolerance = LOSS_TOLERANCE[precision(way)]
            if not difference <= tolerance:
                raise BadInput(
                    f"{name}: the loss of {way} differs from {args.ways[0]}'s by {difference:.2g} (allowed: {tolerance}"
                    "), so they do not train the same thing and their times say nothing"
                )
            runs[way].append({**run, "loss_difference": difference, "load_average": load})
    return runs


def loss_difference(losses: list[float], expected: list[float]) -> float:
    """The largest over all steps."""
    return max(abs(a - b) for a, b in zip(losses, expected, strict=True))


def speed(
    args: argparse.Namespace, runs: dict, work: Any, settings: dict[str, Any], gpu: str
) -> dict[str, dict[str, Any]]:
    """Of each way pairs/s, useful tokens/s (each pair's prompt once, no padding; training tokens only) and, on a GPU,
    the part of its peak that the useful operations took: 6 for each weight and token trained, 2 for each scored once,
    where the output layer has work at labels only and the embedding none."""
    results = {}
    for way, repeats in runs.items():
        walls = [run["wall"] for run in repeats]
        seconds = spread(walls)["median"]
        compared = way != args.ways[0] and len(repeats[0]["losses"]) > 1  # the first loss is ln 2, whatever is trained
        of = {
            "pairs_per_second": spread([len(work.rows) * work.epochs / wall for wall in walls]),
            "useful_tokens_per_second": work.useful_tokens * work.epochs / seconds,
            "loss_difference": max(run["loss_difference"] for run in repeats) if compared else None,
        }
        if gpu:
            once = settings["body"] * work.useful_tokens + settings["head"] * work.labels
            operations = once * (6 * work.epochs + 2)
            of["flops_used"] = operations / seconds / (args.peak_tflops * 1e12)
        results[way] = of
    return results


def child(way: str, work: Any, memory: bool, bar: tqdm) -> dict[str, Any]:
    """One run in its own process. Raises BadInput where it fails; its own message is on stderr by then."""
    request = asdict(replace(work, precision=precision(way)))
    threads = str(work.threads)
    plain = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"} if memory else {}
    known = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false", **plain}
    command = [sys.executable, "-m", "tests.benchmarks.bench_child"]
    process = subprocess.Popen(
        command, cwd=HERE.parents[1], env={**os.environ, **known}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    result = None
    with process:
        json.dump({"way": way.removesuffix("-bf16"), "work": request, "memory": memory}, process.stdin)
        process.stdin.close()
        for line in process.stdout:
            message = json.loads(line)
            bar.update(message.get("tick", 0))
            result = message.get("result", result)
    if process.returncode or result is None:
        raise BadInput(f"the run of {way} ended with status {process.returncode}; its message is above")
    return result


def precision(way: str) -> str:
    """Of a way's arithmetic; its log-probs and losses are float32 either way."""
    return "bfloat16" if way.endswith("-bf16") else "float32"


def steps_of(args: argparse.Namespace, first: tuple[Any, Any]) -> int:
    """Optimiser steps of the full benchmark, for its bar."""
    speed_steps = first[0].plan.stop_step * args.repeats if "speed" in args.measure else 0
    groups = 2 * len(args.groups) * args.epochs * args.repeats if "speed" in args.measure else 0
    return groups + len(args.sets) * len(args.ways) * (speed_steps + (2 if "memory" in args.measure else 0))


def describe(args: argparse.Namespace, model: Path) -> dict[str, Any]:
    """Settings, machine and versions: nothing that names this host or a place on it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model, local_files_only=True))
    names = ("pairs", "batch", "micro", "micro_tokens", "epochs", "repeats", "lr", "threads", "sets", "ways")
    settings = {name: getattr(args, name) for name in names}
    for name in ("model", "data"):
        given = getattr(args, name)
        settings[name] = Path(given).name if Path(given).exists() else given
    settings["weights"] = sum(p.numel() for p in shell.parameters())
    head, words = (layer.weight for layer in (shell.get_output_embeddings(), shell.get_input_embeddings()))
    settings["head"] = head.numel()
    settings["body"] = settings["weights"] - words.numel() - (0 if head is words else head.numel())
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    packages = ("torch", "transformers", "accelerate", *(["trl"] if any("trl" in way for way in args.ways) else []))
    return {
        "settings": settings,
        "machine": {"architecture": platform.machine(), "cpus": os.cpu_count(), "gpu": gpu, "features": features()},
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
        "sets": {},
    }


def features() -> list[str]:
    """Which wide and bfloat16 instructions the CPU has, as Linux names them; [] where it does not say."""
    known = {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16", "i8mm"}
    try:
        return sorted(known & set(Path("/proc/cpuinfo").read_text().split()))
    except OSError:
        return []


if __name__ == "__main__":
    main()
