"""The stages of an iteration in their order, in this process: without Prefect, without a store, without children.

Each stage is its own `run`, with the Config that its task gives it (tasks/*.py, which need Prefect) and the digests of
what it reads. Memory is the most that torch had allocated; seconds are those under the stage's progress bars, so that
loading a model is not in them, as it is not in the cost sheet.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from spin_core.config.base import Section
from spin_core.config.finetune import score_settings
from spin_core.config.profile import Config
from spin_core.job import Inputs, Job
from spin_core.modeling.opponent import release_opponent
from spin_core.stages import evaluate, finetune, gate, gather, generate, reformat, score, sft, tokenize
from spin_core.store.digest import file_digest, manifest, tree_digest
from tests.benchmarks.bench_work import memory, reset_peak


class Chain:
    """One run of `config` in `folder`. `trees`: what each step left there, by its name (`score 0`); `seconds`, `bytes`
    and `summaries` likewise."""

    def __init__(self, config: Config, folder: Path):
        self.config, self.folder = config, folder
        self.trees: dict[str, Path] = {}
        self.seconds: dict[str, float] = {}
        self.bytes: dict[str, int] = {}
        self.summaries: dict[str, dict] = {}
        self.notes: list[str] = []
        self._digests: dict[Path, str] = {}
        self._last = ""

    def start(self, sources: dict[str, Path], model: Path) -> None:
        """Rows, their tokens, and θ_0: the model as it is, or with `sft` what that makes of it."""
        cfg = self.config
        dataset = reformat.Config(dataset=reformat.anonymous(cfg.dataset), seed=cfg.seed)
        rows = self.step("rows", reformat, dataset, dict(sources))
        part = cfg.dataset
        cut = tokenize.Config(chat=cfg.chat, max_rejected=part.max_rejected, shard_rows=part.shard_rows)
        tokens = self.step("tokens", tokenize, cut, {"rows": rows, "tokenizer": model})
        if cfg.sft:
            self.step("model 0", sft, sft.Config(sft=cfg.sft, seed=cfg.seed), {"model": model, "tokens": tokens})
        else:
            self.trees["model 0"] = model

    def answer(self, t: int) -> None:
        """θ_t's answers to every prompt, and the pairs that they make."""
        cfg, model = self.config.at(t), self.trees[f"model {t}"]
        how = generate.Config(generate=cfg.generate, chat=cfg.chat, seed=cfg.seed)
        shards = sorted((self.trees["tokens"] / "prompts").iterdir())
        answers = []
        for n, shard in enumerate(shards):
            made = self.step(f"generate {t}, {n}", generate, how, {"model": model, "prompts": shard}, f"generate {t}")
            answers.append(made)
        inputs: Inputs = {"rows": self.trees["rows"], "tokens": self.trees["tokens"], "answers": answers}
        self.step(f"pairs {t}", gather, gather.Config(gather=cfg.gather), inputs)

    def branch(self, config: Config, folder: Path) -> Chain:
        """A run of another config that goes on from what this one has, in a folder of its own."""
        other = Chain(config, folder)
        other.trees, other.summaries, other._digests = dict(self.trees), dict(self.summaries), dict(self._digests)
        return other

    def train(self, t: int) -> None:
        """θ_{t+1}: the pairs of this iteration and the ones before, scored by whom the loss names and trained on."""
        cfg = self.config.at(t)
        how = score.Config(score=score_settings(cfg.finetune), chat=cfg.chat)
        scored = self.config.scored(t)
        for k, i in scored:
            if f"score {k}, {i}" not in self.trees:
                inputs: Inputs = {"model": self.trees[f"model {k}"], "pairs": self.trees[f"pairs {i}"]}
                self.step(f"score {k}, {i}", score, how, inputs, f"score {t}")
        sets = [self.trees[f"pairs {i}"] for i in self.config.sets(t)]
        logps = [self.trees[f"score {k}, {i}"] for k, i in scored]
        reads: Inputs = {"model": self.trees[f"model {t}"], "pairs": sets, "logps": logps}
        if cfg.finetune.wants_first and t > 0:
            reads |= {"first": self.trees["pairs 0"]}
        self.step(f"model {t + 1}", finetune, finetune.Config(finetune=cfg.finetune, seed=cfg.seed), reads)

    def measure(self, t: int) -> None:
        """θ_t on the held-out rows; from θ_1 on against its opponent, and the gate's decision."""
        cfg = self.config.at(max(0, t - 1))
        part = cfg.finetune
        inputs: Inputs = {"model": self.trees[f"model {t}"], "rows": self.trees["rows"], "tokens": self.trees["tokens"]}
        against: dict[str, Any] = {}
        if t and not part.reference_free:
            against = {"beta": part.ratio_weight, "loss": "hinge" if part.loss == "hinge" else "sigmoid"}
            against |= {"length_normalised": part.length_normalised}
            inputs |= {"pairs": self.trees[f"pairs {t - 1}"], "logps": self.trees[f"score {t - 1}, {t - 1}"]}
        if t > 1 and against:
            inputs |= {"start": self.trees["model 0"]}
        how = evaluate.Config(
            evaluate=cfg.evaluate, chat=cfg.chat, score=score_settings(part), seed=cfg.seed, **against
        )
        self.step(f"evaluate {t}", evaluate, how, inputs)
        if t:
            players: Inputs = {"evaluate": [self.trees[f"evaluate {i}"] for i in range(t + 1)]}
            self.step(f"gate {t}", gate, gate.Config(gate=cfg.gate, seed=cfg.seed), players)

    def step(self, name: str, module: ModuleType, config: Section, inputs: Inputs, group: str = "") -> Path:
        """Runs one stage; its tree. Time and memory count under `group`, where several steps do the work of one."""
        group = group or name
        out, scratch = (self.folder / kind / name.replace(" ", "-").replace(",", "") for kind in ("trees", "scratch"))
        for place in (out, scratch):
            place.mkdir(parents=True)
        if group != self._last:
            release_opponent()  # the next stage reads another model, or trains
        self._last = group
        reset_peak()
        bars: dict[str, float] = {}
        spent = 0.0

        def hear(event: dict) -> None:
            nonlocal spent
            if "note" in event:
                self.notes.append(event["note"])
            elif event.get("closed"):
                spent += time.perf_counter() - bars.pop(event["label"])
            elif "label" in event:
                bars.setdefault(event["label"], time.perf_counter())

        job = Job(out, scratch, self.config.runtime, {key: self._digest(value) for key, value in inputs.items()}, hear)
        self.summaries[name] = module.run(inputs, config, job)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[group] = self.seconds.get(group, 0.0) + spent
        self.bytes[group] = max(self.bytes.get(group, 0), memory("VmHWM"))
        self.trees[name] = out
        return out

    def _digest(self, value: Path | list[Path]) -> str | list[str]:
        if isinstance(value, list):
            return [str(self._digest(one)) for one in value]
        if value not in self._digests:
            made = file_digest(value)[1] if value.is_file() else tree_digest(manifest(value))
            self._digests[value] = made
        return self._digests[value]
