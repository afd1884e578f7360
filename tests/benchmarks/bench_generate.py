"""How fast are answers sampled: the reference's loop, the transformers engine, the vLLM engine?

`make bench-generate` runs the three in turn (A B C A B C …), each in a process of its own, on the same prompts with the
same settings, and writes bench_generate.md and bench_generate.json beside this file. Useful tokens are those up to and
with the end of the answer. It also runs the generate stage as a run does (store, child process, validation) and says
what part of its time is not sampling. `--help` lists what can be chosen.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from tqdm import tqdm

from spin_core.config.chat import ChatSection
from spin_core.config.runtime import Runtime
from spin_core.data.readers import read
from spin_core.errors import BadInput
from spin_core.modeling.encoding import Conversation
from spin_core.modeling.loading import load_chat
from spin_core.runtime import gpus, vllm_env
from spin_core.runtime.child import Children
from spin_core.runtime.launch import python_path
from spin_core.runtime.step import KeyedStep, Step, compute
from spin_core.sources.resolve import resolve
from spin_core.stages import generate
from spin_core.store.store import Store
from tests.benchmarks.bench_data import encoded

HERE = Path(__file__).parent
NAMES = {"naive": "reference's loop", "transformers": "transformers engine", "vllm": "vLLM engine"}
AIMS = {"transformers": 1.5, "vllm": 2.2}
ORCHESTRATION_AIM = 0.03


def main() -> None:
    args = parse()
    try:
        report = measure(args)
    except BadInput as error:
        sys.exit(f"bench-generate: {error}")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "bench_generate.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.out / "bench_generate.md").write_text(page(report))
    print(page(report))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="directory or hub id")
    add("--data", default="openai/gsm8k/main", help="rows with a question: file, folder or hub id")
    add("--prompts", type=int, default=256)
    add("--new", type=int, default=128, help="tokens of answer at most")
    add("--repeats", type=int, default=3)
    add("--naive-batch", type=int, default=16, help="prompts in a batch of the reference's loop (its default)")
    add("--batch", type=int, default=64, help="runtime.generate_batch")
    add("--in-flight", type=int, default=128, help="runtime.requests_in_flight of vLLM")
    add("--threads", type=int, default=os.cpu_count() or 1)
    add("--ways", type=lambda text: text.split(","), default=list(NAMES), help=f"of {','.join(NAMES)}")
    add("--out", type=Path, default=HERE, help="folder of bench_generate.md and .json")
    return parser.parse_args()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that was requested. Raises BadInput for what cannot be run."""
    if wrong := [way for way in args.ways if way not in NAMES]:
        raise BadInput(f"{wrong[0]!r} is none of {', '.join(NAMES)}")
    if "vllm" in args.ways and not vllm_env.place("").exists():
        raise BadInput("vLLM's environment is not there; run `make vllm-env`, or --ways naive,transformers")
    model = Path(resolve(args.model, "model", "", Path()).path)
    data = Path(resolve(args.data, "dataset", "", Path(), "train").path)
    questions = [record.fields["question"] for record in read(data, "train") if not record.reject][: args.prompts]
    chat = load_chat(model, ChatSection())
    asked = [Conversation([{"role": "user", "content": text}], (), ()) for text in questions]
    prompts = [one.prompt for one in encoded(chat, asked)]
    device = "cuda" if gpus.visible() else "cpu"
    request = {
        "model": str(model), "device": device, "threads": args.threads, "seed": 1, "new": args.new, "batch": args.batch,
        "naive_batch": args.naive_batch, "in_flight": args.in_flight, "stop_ids": sorted(chat.end_ids),
        "pad_id": chat.tokenizer.pad_token_id,
        "prompts": prompts,
    }  # fmt: skip
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in args.ways}
    total = args.repeats * len(args.ways) * len(questions)
    with tqdm(total=total, unit="prompt", desc="bench-generate", file=sys.stderr) as bar:
        for repeat in range(args.repeats):
            for way in args.ways:
                bar.set_postfix_str(f"{way}, repeat {repeat + 1} of {args.repeats}")
                load = os.getloadavg()[0]
                runs[way].append({**child(way, request, bar), "load_average": load})
    return {
        "settings": {k: v for k, v in request.items() if k not in ("prompts", "model")}
        | {"model": Path(args.model).name, "prompts": len(questions), "repeats": args.repeats},
        "machine": {"cpus": os.cpu_count(), "architecture": platform.machine()},
        "versions": {name: metadata.version(name) for name in ("torch", "transformers")}
        | ({"vllm": vllm_env.version("")} if "vllm" in args.ways else {}),
        "equal": equal(runs),
        "runs": {way: [{k: v for k, v in run.items() if k != "answers"} for run in of] for way, of in runs.items()},
        "orchestration": orchestration(args, model, prompts),
    }  # fmt: skip


def child(way: str, request: dict[str, Any], bar: tqdm) -> dict[str, Any]:
    """One run of a way in a process of its own. Raises BadInput with its last line where it fails."""
    python = vllm_env.interpreter("") if way == "vllm" else sys.executable
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [python, "-P", "-m", "tests.benchmarks.generate_ways"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            env={**os.environ, "PYTHONPATH": python_path(), "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps({**request, "way": way, "began": time.time()}))
        process.stdin.close()
        for line in process.stdout:
            event = json.loads(line)
            if "result" in event:
                process.wait()
                result: dict[str, Any] = event["result"]
                return result
            bar.update(event["tick"])
        process.wait()
        errors.seek(0)
        raise BadInput(f"{way} ended without a result: {(errors.read().strip().splitlines() or ['no output'])[-1]}")


def equal(runs: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Part of the answers that are the same tokens: between a way's first two repeats, and between the engines."""
    pairs = {f"{way}, twice": of[:2] for way, of in runs.items() if way != "naive" and len(of) > 1}
    if runs.get("transformers") and runs.get("vllm"):
        pairs["transformers and vllm"] = [runs["transformers"][0], runs["vllm"][0]]
    return {
        name: statistics.fmean(a == b for a, b in zip(one["answers"], other["answers"], strict=True))
        for name, (one, other) in pairs.items()
    }


def orchestration(args: argparse.Namespace, model: Path, prompts: list[list[int]]) -> dict[str, float]:
    """Seconds of the generate stage over four shards in a warm child, and of those the seconds of sampling."""
    runtime = Runtime(threads=args.threads, generate_batch=args.batch)
    config = generate.Config(generate=generate.Generate(max_new_tokens=args.new), chat=ChatSection(), seed=1)
    with tempfile.TemporaryDirectory() as folder, Children(1) as children:
        store, wall, sampling = Store(Path(folder, "store")), 0.0, 0.0
        opponent = resolve(str(model), "model", "", Path(), "")
        size = -(-len(prompts) // 4)
        for number, start in enumerate([-1, *range(0, len(prompts), size)]):
            part = prompts[start : start + size] if number else prompts[:2]  # the first loads the model
            file = Path(folder, f"{number}.jsonl")
            rows = [{"id": f"{number}-{i}", "prompt": ids} for i, ids in enumerate(part)]
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            began = time.perf_counter()
            step = Step(generate, str(number), config)
            inputs = {"model": opponent, "prompts": resolve(str(file), "dataset", "", Path(), "")}
            record, _ = compute(store, KeyedStep(step, inputs), runtime, children, lambda event: None)
            if number:
                wall += time.perf_counter() - began
                sampling += record.facts["summary"]["tokens"] / record.facts["summary"]["tokens_per_second"]
    return {"stage_seconds": wall, "sampling_seconds": sampling, "orchestration": 1 - sampling / wall}


def page(report: dict[str, Any]) -> str:
    """The Markdown page."""
    s, runs, base = report["settings"], report["runs"], report["runs"].get("naive")
    where = "GPU" if s["device"] == "cuda" else f"{s['threads']} threads of {report['machine']['cpus']} CPUs"
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [
        f"{s['model']}, {s['prompts']} prompts, temperature 1, at most {s['new']} new tokens; {where}; {versions}; "
        f"batches of {s['naive_batch']} in the reference's loop, {s['batch']} slots, {s['in_flight']} requests in "
        f"vLLM. {s['repeats']} repeats in alternating processes: median (least–largest).\n",
        "| way | useful tokens/s | ratio | ratio, CPU time | start-up | tokens/s with start-up | ratio | aim |",
        "|---" * 8 + "|",
    ]
    for way, of in runs.items():
        alone, with_startup = (
            [r["tokens"] / r["wall"] for r in of],
            [r["tokens"] / (r["wall"] + r["startup"]) for r in of],
        )
        cells = [NAMES[way], _spread(alone, ".0f")]
        cells += [_ratio(of, base, "wall"), _ratio(of, base, "cpu")]
        cells += [
            f"{statistics.median(r['startup'] for r in of):.0f} s",
            _spread(with_startup, ".0f"),
            _ratio(of, base, "both"),
        ]
        cells.append(f"{AIMS[way]}× {_met(of, base, AIMS[way])}" if way in AIMS and base else "–")
        lines.append(f"| {' | '.join(cells)} |")
    o = report["orchestration"]
    lines.append(
        f"\nOrchestration (store, supervision, validation; transformers engine, four shards, warm child): "
        f"{o['orchestration']:.1%} of {o['stage_seconds']:.0f} s (aim: below {ORCHESTRATION_AIM:.0%})."
    )
    for name, part in report["equal"].items():
        lines.append(f"\nEqual answers, {name}: {part:.1%}.")
    return "\n".join(lines) + "\n"


def _ratios(of: list[dict], base: list[dict], clock: str) -> list[float]:
    """Tokens per second, each over its neighbour's in time."""

    def rate(run: dict) -> float:
        seconds = run["wall"] + run["startup"] if clock == "both" else run[clock]
        return float(run["tokens"] / seconds)

    return [rate(one) / rate(other) for one, other in zip(of, base, strict=True)]


def _ratio(of: list[dict], base: list[dict] | None, clock: str) -> str:
    return "–" if base is None or of is base else f"{_spread(_ratios(of, base, clock), '.2f')}×"


def _met(of: list[dict], base: list[dict], aim: float) -> str:
    return "met" if statistics.median(_ratios(of, base, "wall")) >= aim else "missed"


def _spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


if __name__ == "__main__":
    main()
