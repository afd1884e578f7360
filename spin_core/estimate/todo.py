"""What of a run is still to be computed: rows to answer, pairs to score, models to train and to evaluate.

Is not: the plan itself, which is the ledger (`tasks/runner/planning.py`); this counts its entries. A cached step costs
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from spin_core.config import yaml_reader
from spin_core.config.dataset import Source
from spin_core.config.finetune import own_first, score_settings
from spin_core.config.profile import Config
from spin_core.data.mixing import sizes
from spin_core.data.token_file import FILES, TokenFile
from spin_core.job import Entry

KNOWN = Path(__file__).with_name("datasets.yaml")
ANYWHERE = (50_000, 500, 200, 250)
"""Rows and tokens where nothing is known of a dataset."""


@dataclass(frozen=True)
class Data:
    """Rows, and tokens of a row in the mean. `basis`: where the numbers are from."""

    train: int
    test: int
    prompt: float
    answer: float
    basis: str

    @property
    def rows(self) -> int:
        """Of both splits."""
        return self.train + self.test


@dataclass
class Todo:
    """Steps that would run. `tokenize`: how many; `generate`: rows by iteration; `score`: (iteration, whose
    pairs, k of the θ_k); `finetune`, `gather`: iterations; `controls`: after how many iterations each; `evaluate`:
    models in all, `opposed` of them with an opponent; `harness`: models."""

    reformat: bool = False
    tokenize: int = 0
    sft: bool = False
    generate: dict[int, int] = field(default_factory=dict)
    gather: list[int] = field(default_factory=list)
    score: list[tuple[int, int, int]] = field(default_factory=list)
    finetune: list[int] = field(default_factory=list)
    controls: list[int] = field(default_factory=list)
    evaluate: int = 0
    opposed: int = 0
    harness: int = 0


def of_ledger(entries: Iterable[Entry], data: Data) -> Todo:
    """Of a plan's ledger: the entries that would run."""
    todo = Todo()
    for entry in entries:
        if entry.state == "cached":
            continue
        place = entry.place
        t = -1 if place.iteration is None else place.iteration
        if entry.stage == "reformat":
            todo.reformat = True
        elif entry.stage == "tokenize":
            todo.tokenize += 1
        elif entry.stage == "generate":
            todo.generate[t] = todo.generate.get(t, 0) + entry.summary.get("rows", data.rows)
        elif entry.stage == "sft" and place.role == "control":
            todo.controls.append(t + 1)
        elif entry.stage == "sft":
            todo.sft = True
        elif entry.stage == "gather":
            todo.gather.append(t)
        elif entry.stage == "score":
            todo.score.append((t, t if place.pairs is None else place.pairs, t if place.by is None else place.by))
        elif entry.stage == "finetune":
            todo.finetune.append(t)
        elif entry.stage == "evaluate":
            todo.evaluate += 1
            todo.opposed += place.role == "iteration"
        elif entry.stage == "harness":
            todo.harness += 1
    return todo


def everything(config: Config, data: Data) -> Todo:
    """A run of which nothing is cached: as `flows/spin.py` has it, for where no ledger can be made."""
    first, count = config.start.iteration, config.iterations
    trained = range(first, count)
    made = [t for t in trained if t not in config.start.pairs]
    controls = [t + 1 for t in trained] if config.control else []
    models = 1 + len(trained) + len(controls)
    scores: dict[tuple[int, int, str], tuple[int, int, int]] = {}
    for t in trained:
        # Of what an earlier iteration has scored in the same way nothing is left.
        for k, of in own_first(config.scored(t)):
            scores.setdefault((k, of, score_settings(config.at(t).finetune).model_dump_json()), (t, of, k))
    return Todo(
        reformat=True, tokenize=1, sft=bool(config.sft) and not first, generate=dict.fromkeys(made, data.rows),
        gather=made, score=list(scores.values()), finetune=list(trained), controls=controls, evaluate=models,
        opposed=len(trained), harness=models if config.harness else 0,
    )  # fmt: skip


def measured(tree: Path) -> Data:
    """Of a tokens tree, all of its rows."""
    train, test = (TokenFile(tree / name) for name in FILES.values())
    count = max(1, len(train) + len(test))
    prompt, answer = (int(train.lengths(name).sum() + test.lengths(name).sum()) for name in ("prompt", "answer"))
    return Data(len(train), len(test), prompt / count, answer / count, f"of all {count:,} rows")


def counted(config: Config, train: int, test: int) -> Data:
    """So many rows, whose tokens cannot be counted yet."""
    return replace(assumed(config), train=train, test=test, basis="assumed, as the tokenizer is not there yet")


def assumed(config: Config) -> Data:
    """Without the rows: what is known of a published dataset, cut to the profile's limits; else a guess, named so."""
    whole, listed = config.dataset, yaml_reader.read_file(KNOWN)
    parts = list(whole.parts.values())
    known = [_of_set(part, whole.test_fraction, listed.get(part.path, ANYWHERE)) for part in parts]
    trains, tests = ([part[side] for part in known] for side in (0, 1))
    trains = sizes(trains, [part.limit for part in parts], whole.weights, whole.limit)
    tests = sizes(tests, [part.test_limit for part in parts], [], 0)
    rows = [train + test for train, test in zip(trains, tests, strict=True)]
    prompt, answer = (
        sum(n * part[side] for n, part in zip(rows, known, strict=True)) / max(1, sum(rows)) for side in (2, 3)
    )
    train, test = min(sum(trains), whole.limit or sum(trains)), min(sum(tests), whole.test_limit or sum(tests))
    unknown = ", ".join(name or "the dataset" for name, part in whole.parts.items() if part.path not in listed)
    basis = f"assumed, as nothing is known of {unknown} here" if unknown else ""
    return Data(train, test, prompt, answer, basis or f"assumed for {', '.join(part.path for part in parts)}")


def _of_set(part: Source, test_fraction: float, known: Sequence[int]) -> tuple[int, int, int, int]:
    """Training and held-out rows of one set, before its limits, and tokens of a prompt and an answer."""
    train, test, prompt, answer = known
    if not part.test_split and not part.test_path:
        train, test = round(train * (1 - test_fraction)), round(train * test_fraction)
    if part.frac_len:
        train, test = (max(0, min(part.frac_len, n - part.data_frac * part.frac_len)) for n in (train, test))
    return train, test, prompt, answer
