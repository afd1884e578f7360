"""A whole iteration of a 135M model: 2,048 prompts to rows, tokens, answers, pairs, log-probs, a new model, and both
models on 256 held-out rows with the gate's decision; by the stages' own functions in order (`chain`), without Prefect.
Where time is left, a second iteration.

Prompts are GSM8K's where the kit has them, else short tasks with one right answer each
that the project makes (spin_core/stages/demo_rows.py). The model is the kit's where it has one, and is then trained as
deployments/profiles/gsm8k-smollm2.yaml says; else it has SmolLM2-135M's shape and random weights, the kit's tokenizer
or one of characters, and the stage sft makes θ_0 of it, as it has to answer something. Such a model's exact match says
nothing, and the figure to look at is the NLL of real answers. The first row says which it was.

Intervals are those of the product (spin_core/analysis/statistics.py, 95 %): of a mean over tokens, of a rate, and of
the paired change on the same rows, by which the gate decides. `sheet` beside a stage's seconds and GiB of tensors is
what `spinloop plan` would have said, multiplied by the factors of the part `estimates` where this proof wrote some.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from spin_core.analysis.results import read_model
from spin_core.analysis.statistics import Interval, mean, rate
from spin_core.config.profile import Config, parse
from spin_core.config.runtime import Runtime
from spin_core.estimate import measured, sheet, todo
from spin_core.estimate.architecture import Architecture, from_config
from spin_core.estimate.hardware import Hardware
from spin_core.estimate.needs import CONTEXT, GIB, SPARE, Setting
from spin_core.job import Job
from spin_core.stages import demo_rows
from tests.gpu import sizes
from tests.gpu.chain import Chain
from tests.gpu.proof import Figures, Proof, Skip


@dataclass
class Made:
    """What the checks of this part hand on. `said`: of which model and which rows."""

    chain: Chain
    model: Path
    sources: dict[str, Path]
    said: Figures


_models: dict[Path, Made] = {}
"""Of this process, by the proof's folder: a check that comes after one whose process died finds none."""


def begin(proof: Proof) -> Figures:
    """Rows, tokens and θ_0."""
    made = _models[proof.work] = _made(proof)
    made.chain.start(made.sources, made.model)
    rows = made.chain.summaries["rows"]
    sizes_of = {"training rows": rows["train_rows"], "held-out rows": rows["test_rows"]}
    if "model 0" not in made.chain.summaries:
        return {**made.said, **sizes_of}
    trained = made.chain.summaries["model 0"]
    losses = {"sft loss, first step": trained["loss/first"], "sft loss, last": trained["loss/last"]}
    return {**made.said, **sizes_of, **losses, "sft, s": made.chain.seconds["model 0"]}


def before(proof: Proof) -> Figures:
    """θ_0 on the held-out rows."""
    return _measured(_begun(proof, "model 0"), 0)


def answers(proof: Proof) -> Figures:
    """θ_0's answers to all prompts, and the pairs."""
    return _answered(_begun(proof, "model 0"), 0)


def training(proof: Proof) -> Figures:
    """The opponent's log-probs, and θ_1."""
    return _trained(_begun(proof, "pairs 0"), 0)


def after(proof: Proof) -> Figures:
    """θ_1 on the held-out rows, and the gate's decision."""
    return _measured(_begun(proof, "model 1"), 1)


def costs(proof: Proof) -> Figures:
    """Seconds and GiB of the iteration's stages, and what the cost sheet says of them."""
    made = _begun(proof, "evaluate 1")
    chain, config = made.chain, made.chain.config
    data = todo.measured(chain.trees["tokens"])
    setting = Setting(_architecture(made.model), data, Hardware(replace(sizes.card(proof), name=""), 1, True, ""))
    # Two models are evaluated, the second against its opponent.
    work = todo.Todo(generate={0: data.rows}, score=[(0, 0, 0)], finetune=[0], evaluate=2, opposed=1)
    lines = {line.stage: line for line in sheet.lines(setting, config, work)}
    names = {"generate": ["generate 0"], "score": ["score 0"], "finetune": ["model 1"],
             "evaluate": ["evaluate 0", "evaluate 1"]}  # fmt: skip
    known, figures = proof.out / measured.KNOWN.name, dict[str, float | str]()
    for stage, groups in names.items():
        line, one = lines[stage], None
        if known.is_file():
            one = measured.nearest(sizes.card(proof).name, stage, setting.model.weights, known)
        slower, larger = (one.time, one.memory) if one else (1.0, 1.0)
        seconds, held = sum(chain.seconds[name] for name in groups), max(chain.bytes[name] for name in groups)
        tensors = (line.need.gpu - CONTEXT) / SPARE * larger
        figures[f"{stage}, s"] = f"{seconds:.3g}" + (f", sheet {line.seconds * slower:.3g}" if line.seconds else "")
        figures[f"{stage}, GiB"] = f"{held / GIB:.3g}, sheet {tensors / GIB:.3g}"
    return figures


def again(proof: Proof) -> Figures:
    """The second iteration, where twice the first one's time is left."""
    made = _begun(proof, "evaluate 1")
    needed = 2 * sum(seconds for name, seconds in made.chain.seconds.items() if name not in ("rows", "tokens"))
    if not proof.tiny and proof.left() < needed:
        raise Skip(f"{proof.left():.0f} s are left, and a second iteration wants {needed:.0f}")
    return _answered(made, 1) | _trained(made, 1) | _measured(made, 2)


def _begun(proof: Proof, name: str) -> Made:
    made = _models.get(proof.work)
    if made is None or name not in made.chain.trees:
        raise Skip(f"{name} is not there, as an earlier check did not come to its end")
    return made


def _answered(made: Made, t: int) -> Figures:
    chain = made.chain
    chain.answer(t)
    quality = chain.summaries[f"pairs {t}"]
    of = [summary for name, summary in chain.summaries.items() if name.startswith(f"generate {t},")]
    tokens = sum(summary["tokens"] for summary in of)
    return {
        "answers": sum(summary["answers"] for summary in of), "tokens": tokens,
        "tokens/s": tokens / chain.seconds[f"generate {t}"], "cut": quality["truncated_fraction"],
        "pairs": quality["train_pairs"] + quality["test_pairs"],
        "same as the real answer": quality["identical_fraction"], "generate, s": chain.seconds[f"generate {t}"],
    }  # fmt: skip


def _trained(made: Made, t: int) -> Figures:
    chain = made.chain
    chain.train(t)
    scored, trained = chain.summaries[f"score {t}, {t}"], chain.summaries[f"model {t + 1}"]
    first = trained["loss/first"]
    assert abs(first - 0.693) < 0.1, f"the first step's loss is {first:.3f} and not ln 2: policy and opponent differ"
    return {
        "score, s": chain.seconds[f"score {t}"], "log-prob of real answers": scored["logps/real"],
        "of generated ones": scored["logps/generated"], "steps": trained["steps"], "loss, first step": first,
        "loss, last": trained["loss/last"], "margin, last": trained["rewards/margins"],
        "finetune, s": chain.seconds[f"model {t + 1}"], "alarms": "; ".join(trained["alarms"]) or "none",
    }  # fmt: skip


def _measured(made: Made, t: int) -> Figures:
    chain = made.chain
    chain.measure(t)
    model = read_model(f"θ_{t}", "iteration" if t else "start", t - 1, chain.trees[f"evaluate {t}"])
    nll, tokens = model.column("nll"), model.column("tokens")
    figures: Figures = {"model": f"θ_{t}"}
    figures["NLL of real answers"] = _shown(mean(list(nll.values()), [tokens[key] for key in nll]))
    for name in ("greedy", "sampled"):
        if matches := model.column(f"{name}_match"):
            figures[f"exact match, {name}"] = _shown(rate(sum(matches.values()) / len(matches), len(matches)))
    if margins := list(model.column("margin").values()):
        figures["margin against the opponent"] = _shown(mean(margins))
    if t:
        decision = json.loads((chain.trees[f"gate {t}"] / "decision.json").read_text(encoding="utf-8"))
        figures |= {"gate": decision["outcome"], "because": decision["reason"]}
    return figures | {"evaluate, s": chain.seconds[f"evaluate {t}"]}


def _shown(interval: Interval | None) -> str:
    return f"{interval.value:.4g} ({interval.low:.4g} to {interval.high:.4g})" if interval else "too few rows"


def _architecture(model: Path) -> Architecture:
    shape = from_config(json.loads((model / "config.json").read_text(encoding="utf-8")))
    assert isinstance(shape, Architecture), shape
    return shape


def _made(proof: Proof) -> Made:
    """The kit's model, tokenizer and rows, or made ones; and the profile."""
    kit = proof.kit or proof.work
    train, test, words = kit / "gsm8k" / "train.jsonl", kit / "gsm8k" / "test.jsonl", kit / "model"
    gsm8k, real = train.is_file(), (words / "model.safetensors").is_file()
    tokenizer = words if (words / "tokenizer.json").is_file() else None
    model = words if real else sizes.folder(proof, sizes.small(proof), tokenizer)
    if gsm8k:
        sources = {"source": train} | ({"test_source": test} if test.is_file() else {})
    else:
        sources = {"source": _drawn(proof, "train"), "test_source": _drawn(proof, "test")}
    said: Figures = {
        "model": "the kit's" if real else "SmolLM2-135M's shape, random weights; θ_0 is made by sft",
        "tokens": "the kit's tokenizer" if tokenizer else "characters",
        "rows": "GSM8K" if gsm8k else "made by the project (spin_core/stages/demo_rows.py)",
    }
    longest = (60, 16) if proof.tiny or not gsm8k else (256, 128) if tokenizer else (1000, 256)
    return Made(Chain(_profile(proof, real, gsm8k, *longest), proof.folder("chain")), model, sources, said)


def _counts(proof: Proof) -> tuple[int, int]:
    """Training and held-out rows."""
    return (24, 32) if proof.tiny else (2048, 256)


def _drawn(proof: Proof, split: str) -> Path:
    out, (count, test) = proof.folder("rows"), _counts(proof)
    config = demo_rows.Config(seed=1, split=split, train_rows=count, test_rows=test)
    demo_rows.run({}, config, Job(out, out))
    return out / "rows.jsonl"


def _profile(proof: Proof, real: bool, gsm8k: bool, prompt: int, new: int) -> Config:
    """How the iteration is computed; a model of random weights is trained by SFT first, and with larger steps."""
    own = {"lr": 5e-7} if real else {"lr": 1e-5, "optimizer": "adamw"}
    part = {"precision": "bfloat16", "global_batch": 8 if proof.tiny else 64, "max_length": prompt + 2 * new}
    runtime = Runtime(
        device=str(proof.device), generate_batch=16 if proof.tiny else 512, score_tokens=16384, micro_tokens=16384,
        checkpoint_every=0,
    )  # fmt: skip
    rows, test = _counts(proof)
    profile = {
        "name": "gpu-proof", "iterations": 2, "model": {"path": "made"}, "runtime": runtime.model_dump(),
        "dataset": {"path": "made", "limit": rows, "test_limit": test, "shard_rows": 4096},
        "chat": {"max_prompt_length": prompt}, "generate": {"max_new_tokens": new},
        "finetune": {**part, **own, "schedule_epochs": 1},
        "evaluate": {"exact_match": "#### (.+)" if gsm8k else "answer", "max_new_tokens": new},
    }  # fmt: skip
    if not real:
        profile["sft"] = {**part, "lr": 5e-4, "epochs": 2}
    return parse(profile, "tests/gpu/whole.py")


CHECKS = (begin, before, answers, training, after, costs, again)
