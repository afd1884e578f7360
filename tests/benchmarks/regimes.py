"""The regime map: where which objective pays, against which opponents, beside tuned SFT.

`make regimes` trains a model of 0.1 M weights into five situations (`SITUATIONS`), runs two iterations of each
objective against greedy and against sampled answers from there (of two of them against answers at temperature 0.3), on
three seeds, and SFT for as many optimiser steps at three learning rates. The stages' own functions do it
(tests/gpu/chain.py), without Prefect, so that an hour of two idle cores is enough. What is done is kept in the folder
of `--work` (regimes/ beside this file) and not computed again. `regimes_page` then writes docs/regimes.md and its
picture, and what the forecast of a run says of its nearest situation.

Every objective has one setting in each situation (lr, batch and steps of the row in `SITUATIONS`, β or what the loss
has for it as there), chosen for `sigmoid`; none was tuned. SFT is the best of six checkpoints by the very figure.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from spin_core.config.profile import Config, parse
from spin_core.config.runtime import Runtime
from spin_core.data.rows import FILES, read_rows
from spin_core.job import Job
from spin_core.stages import demo_model, demo_rows, docstring_rows, sft
from tests.benchmarks import demo_seeds
from tests.gpu.chain import Chain

HERE = Path(__file__).parent
SEEDS = (1, 2, 3)
RATES = (3e-4, 1e-3, 3e-3)
DECODERS: dict[str, dict[str, Any]] = {  # `generate:` of each
    "greedy": {"decoder": "greedy"},
    "T = 0.3": {"temperature": 0.3},
    "T = 1": {},
}
FEW = ("sigmoid", "sigmoid, sft_weight 1")  # the objectives of the decoder between the two others
OBJECTIVES: dict[str, dict[str, Any]] = {  # `finetune:` of each, for a β of the situation
    "sigmoid": {},
    "sigmoid, sft_weight 1": {"sft_weight": 1},
    "hinge": {"loss": "hinge"},
    "unpaired": {"loss": "unpaired", "unpaired": {"a": "beta"}},
    "tspin": {"loss": "tspin", "tspin": {"alpha": "beta"}},
    "tpaw": {"loss": "tpaw"},
    "alpha": {"loss": "alpha"},
    "dft": {"loss": "dft"},
}
WAYS = [(decoder, loss) for decoder in DECODERS for loss in (FEW if decoder == "T = 0.3" else OBJECTIVES)]
FAMILIES = demo_rows.FAMILIES
Figures = dict[str, float]


@dataclass(frozen=True)
class Situation:
    """How θ_0 is made, and what SPIN and SFT then train on. `steps` are those of one iteration."""

    about: str
    rows: str
    count: int
    """Training rows."""
    sft: dict[str, Any]
    steps: int
    batch: int = 128
    lr: float = 1e-4
    beta: float = 1.0
    held_out: int = 400
    answer: int = 12
    """Tokens of an answer at most."""
    exact_match: str = "answer"
    own: tuple[str, ...] = ()
    """Families of tasks that SPIN and SFT train on, where θ_0 was made of a quarter of their rows and of all others;
    empty: all rows for both."""
    figures: dict[str, str] = field(default_factory=lambda: TASKS)
    """Figure → what it is called: first that of greedy answers, then that of answers sampled at temperature 1."""


TASKS = {"exact_match/greedy": "exact match, greedy", "exact_match/sampled": "exact match, T = 1"}
SITUATIONS = {
    "under-trained": Situation(
        "builtin:tasks, 2,000 rows; θ_0 of 300 steps still learns", "builtin:tasks", 2000,
        {"lr": 2e-3, "epochs": 9.6}, steps=25,
    ),
    "small data": Situation(
        "builtin:tasks, 500 rows; θ_0 of 470 steps knows them by heart", "builtin:tasks", 500,
        {"lr": 2e-3, "epochs": 60}, steps=12,
    ),
    "one task of four": Situation(
        "builtin:tasks; θ_0 learnt three kinds well and the fourth from 375 rows, 1,125 more of it are trained on; all "
        "four kinds are held out",
        "builtin:tasks", 6000, {"lr": 2e-3, "epochs": 7}, steps=24, own=("Swap",),
        figures={**TASKS, "other/greedy": "the three others, greedy", "own/greedy": "the one, greedy"},
    ),
    "plateau, real text": Situation(
        "builtin:docstrings, 2,200 rows; θ_0 at its plateau loops greedily; good: ended, no loop, real words",
        "builtin:docstrings", 2200, {"lr": 4e-3, "epochs": 20}, steps=20, beta=0.2, answer=72, exact_match="",
        figures={"good/greedy": "good, greedy", "good/sampled": "good, T = 1", "good/t0.3": "good, T = 0.3"},
    ),
    "bland mode": Situation(
        "builtin:bland, 3,000 rows: one in five gives up, which is the likeliest single answer", "builtin:bland", 3000,
        {"lr": 3e-3, "epochs": 16}, steps=30, lr=5e-5, answer=20, exact_match=r"(\w+)\.$",
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=HERE / "regimes", help="what is done is kept here")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--only", nargs="+", default=list(SITUATIONS), choices=SITUATIONS)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    begun, jobs = time.time(), [(name, seed) for seed in given.seeds for name in given.only]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.workers, mp_context=context) as pool:
        waiting = [pool.submit(cells, name, seed, given.work) for name, seed in jobs]
        for done in as_completed(waiting):
            name, seed = done.result()
            print(f"{(time.time() - begun) / 60:5.1f} min  done: {name}, seed {seed}", flush=True)
    from tests.benchmarks.regimes_page import write

    write(given.work)


def cells(name: str, seed: int, work: Path) -> tuple[str, int]:
    """All objectives and decoders of one situation and seed, and SFT; written when all are there, as they share a θ_0
    that another machine would not make to the bit."""
    kept, done = file_of(work, name, seed), dict[str, Figures]()
    if kept.is_file():
        return name, seed
    with TemporaryDirectory() as folder:
        for cell, figures in computed(SITUATIONS[name], seed, Path(folder)):
            done[cell] = {figure: round(value, 5) for figure, value in figures.items()}
            print(f"           {name}, seed {seed}, {cell}", flush=True)
    kept.write_text(json.dumps(done, indent=1) + "\n")
    return name, seed


def file_of(work: Path, name: str, seed: int) -> Path:
    work.mkdir(parents=True, exist_ok=True)
    return work / f"{name.replace(' ', '-').replace(',', '')}-{seed}.json"


def computed(case: Situation, seed: int, folder: Path) -> Iterator[tuple[str, Figures]]:
    """Cell → its figures, one after the other."""
    start, measured = begin(case, seed, folder)
    yield "θ_0", measured(start, 0)
    for decoder in DECODERS:
        asked = start.branch(config_of(case, seed, decoder, {}), folder / decoder.replace(" ", ""))
        asked.answer(0)
        asked.train(0)
        score = asked.summaries["score 0, 0"]
        yield f"forecast | {decoder}", score["forecast"]
        for loss in (loss for kind, loss in WAYS if kind == decoder):
            run = asked.branch(config_of(case, seed, decoder, OBJECTIVES[loss]), asked.folder / loss.replace(" ", "-"))
            if loss != "sigmoid":
                del run.trees["model 1"]
                run.train(0)
            run.measure(1)
            figures = {f"θ_1 {name}": value for name, value in measured(run, 1).items()}
            run.answer(1)
            run.train(1)
            run.measure(2)
            yield f"{decoder} | {loss}", figures | measured(run, 2)
            shutil.rmtree(run.folder)
    for rate in RATES:
        runs = {n: control(case, seed, rate, n, start, folder, measured) for n in (1, 2)}
        yield f"sft {rate:g}", {f"{n} {name}": value for n, one in runs.items() for name, value in one.items()}


def begin(case: Situation, seed: int, folder: Path) -> tuple[Chain, Callable[[Chain, int], Figures]]:
    """θ_0, measured, and the rows that are trained on; and what reads the figures of a model of a chain."""
    config = config_of(case, seed, "greedy", {})
    job = Job(folder / "model", folder, config.runtime)
    job.out.mkdir(parents=True)
    demo_model.run({}, demo_model.Config(seed=seed), job)
    sources = sources_of(case, seed, folder)
    chain = Chain(config, folder / "start")
    if case.own:
        first = Chain(config, folder / "first")
        first.start(sources_of(case, seed, folder, of_start=True), job.out)
        chain = Chain(config.model_copy(update={"sft": None}), folder / "start")
        chain.start(sources, first.trees["model 0"])
        chain.config = config
    else:
        chain.start(sources, job.out)
    chain.measure(0)
    rows = chain.trees["rows"]
    known = {word for file in FILES.values() for row in read_rows(rows / file) for word in words_of(row)}

    def measured(run: Chain, t: int) -> Figures:
        return figures_of(case, run.trees[f"evaluate {t}"], known, run.trees.get(f"gate {t}"))

    return chain, measured


def words_of(row: Any) -> list[str]:
    return demo_seeds.words(demo_seeds.row_text(row))


def control(
    case: Situation, seed: int, rate: float, count: int, start: Chain, folder: Path, measured: Callable
) -> Figures:
    """θ_0 trained on by SFT for as many steps as `count` iterations have."""
    config = config_of(case, seed, "greedy", {})
    own = folder / f"sft {rate:g} {count}"
    run = start.branch(config, own)
    rows = start.summaries["rows"]["train_rows"]
    part = {"lr": rate, "epochs": count * case.steps * case.batch / rows, "global_batch": case.batch}
    how = sft.Config(sft=config.sft.model_copy(update=part) if config.sft else None, seed=seed)
    model = run.step("model sft", sft, how, {"model": start.trees["model 0"], "tokens": start.trees["tokens"]})
    run.trees["model 0"] = model
    run.measure(0)
    figures = measured(run, 0)
    shutil.rmtree(own)
    return figures


def sources_of(case: Situation, seed: int, folder: Path, of_start: bool = False) -> dict[str, Path]:
    """The rows' files: those that SPIN and SFT train on, or where a situation has families of its `own`, on demand
    those that θ_0 was made of."""
    made = {}
    if case.rows == "builtin:docstrings":
        job = Job(folder / "rows", folder, Runtime())
        job.out.mkdir(parents=True)
        docstring_rows.run(
            {}, docstring_rows.Config(library=docstring_rows.digest_of(docstring_rows.library_files())), job
        )
        return {"source": job.out / "rows.jsonl"}
    for split, name in (("train", "source"), ("test", "test_source")):
        job = Job(folder / f"rows-{split}-{of_start}", folder, Runtime())
        job.out.mkdir(parents=True)
        counts = {"train_rows": case.count, "test_rows": case.held_out}
        demo_rows.run({}, demo_rows.Config(seed=seed, split=split, **counts, **demo_rows.SETS[case.rows]), job)
        made[name] = job.out / "rows.jsonl"
        if case.own and split == "train":
            lines = made[name].read_text().splitlines(keepends=True)
            own = [line for line in lines if json.loads(line)["prompt"].startswith(case.own)]
            first, few = sorted({*lines} - {*own}), own[: len(own) // 4]
            made[name].write_text("".join([*first, *few] if of_start else own[len(own) // 4 :]))
    return made


def config_of(case: Situation, seed: int, decoder: str, part: dict[str, Any]) -> Config:
    """The profile of one cell."""
    finetune = {name: weighed(value, case.beta) for name, value in part.items()}
    if finetune.get("loss") not in ("unpaired", "tspin", "dft"):
        finetune["beta"] = case.beta
    rows = case.count * 3 // (4 * len(FAMILIES)) if case.own else case.count
    epochs = case.steps * case.batch / rows
    text = case.rows == "builtin:docstrings"
    longest = 104 if text else 32 + case.answer + 8
    halved = finetune.get("loss") != "dft"  # of twice as many pairs; dft has one example a row
    limits = {"test_fraction": 0.12, "limit": case.count, "test_limit": case.held_out} if text else {}
    return parse(
        {
            "name": "regimes", "seed": seed, "iterations": 2, "history": 2,
            "model": {"path": "builtin:tiny-llama"},
            "dataset": {"path": case.rows, "shard_rows": 20000, **limits},
            "chat": {"max_prompt_length": 32},
            "sft": {"global_batch": 64, "warmup_ratio": 0.05, "max_length": longest, **case.sft},
            "generate": {**DECODERS[decoder], "max_new_tokens": case.answer},
            "finetune": {
                "lr": case.lr, "optimizer": "adamw", "schedule_epochs": epochs, "global_batch": case.batch,
                "max_length": longest, **finetune,
            },
            "overrides": {1: {"finetune": {"schedule_epochs": epochs / 2}}} if halved else {},
            "gate": {"resamples": 500},
            "evaluate": {
                "max_new_tokens": case.answer, "exact_match": case.exact_match, "temperatures": [0.3] if text else [],
            },
            "runtime": {
                "threads": 1, "generate_batch": 500, "score_tokens": 16384, "micro_tokens": 16384,
                "checkpoint_every": 0,
            },
        },
        "regimes",
    )  # fmt: skip


def weighed(value: Any, beta: float) -> Any:
    """A setting with the situation's β where it says so."""
    if isinstance(value, dict):
        return {name: weighed(one, beta) for name, one in value.items()}
    return beta if value == "beta" else value


def figures_of(case: Situation, evaluate: Path, known: set[str], gate: Path | None) -> Figures:
    """Of one model: the situation's figures, NLL, how many sampled answers end, and the alarms of the gate."""
    metrics = json.loads((evaluate / "metrics.json").read_text())
    figures = {"nll": metrics["nll/real"], "ended/sampled": 1 - metrics["truncated/sampled"]}
    every = demo_seeds.measured(evaluate, known) if not case.exact_match else {}
    lines = [json.loads(line) for line in (evaluate / "rows.jsonl").read_text().splitlines()]
    for name in case.figures:
        side, kind = name.split("/")
        if side in ("other", "own"):
            right = [line[f"{kind}_match"] for line in lines if line["prompt"].startswith(case.own) == (side == "own")]
            figures[name] = fmean(right)
        else:
            figures[name] = every[name] if name in every else metrics[name]
    if gate:
        decision = json.loads((gate / "decision.json").read_text())
        figures |= {"alarms": len(decision["alarms"]), "best": decision["best"]}
    return figures


if __name__ == "__main__":
    main()
