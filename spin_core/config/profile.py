"""A profile: one YAML file = one run. The same model is the YAML schema, the Prefect form and the command line's
`--set`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from spin_core.config import yaml_reader
from spin_core.config.base import Section, added_field, listed_section, section_of
from spin_core.config.chat import ChatSection
from spin_core.config.dataset import Dataset
from spin_core.config.evaluate import Evaluate
from spin_core.config.finetune import Finetune, engine_logps_unusable, score_settings, scored
from spin_core.config.gate import Gate
from spin_core.config.gather import Gather
from spin_core.config.generate import Generate
from spin_core.config.harness import Harness
from spin_core.config.runtime import Runtime
from spin_core.config.sft import Sft
from spin_core.config.start import Start
from spin_core.config.sweep import Sweep
from spin_core.errors import BadInput

DEPLOYMENTS = Path(__file__).resolve().parents[1] / "deployments"
"""In a checkout a link to the folder deployments/; in a wheel a folder with what commands read of it."""
PROFILES = DEPLOYMENTS / "profiles"
PER_ITERATION = ("generate", "gather", "finetune", "evaluate")
DEFAULT: Any = object()
"""In place of a value: the field's default."""
LONGEST_QUOTE = 120  # characters of what a message quotes from a profile


class Model(Section):
    """`model:` in a profile: the supervised-fine-tuned start θ_0, or with `sft:` the base model that θ_0 is made
    from."""

    path: str = Field(description="A model directory (safetensors), a hub id (org/name), or builtin:tiny-llama.")
    revision: str = Field("", description="Hub revision; the content at its commit enters the key.")


class Config(Section):
    """One run. Every field is part of what is computed, but for `name` (a label) and `runtime` (how, not what)."""

    name: str = Field(
        "run", pattern=r"^[a-z0-9][a-z0-9._-]{0,40}$", description="What the run is called in the store and the UI."
    )
    seed: int = Field(42, ge=0, description="Seed of splits, sampling and training order.")
    iterations: int = Field(3, ge=0, le=100, description="SPIN iterations.")
    history: int = Field(2, ge=1, description="Train on the pairs of this many latest iterations (the paper: 2).")
    model: Model = Field(description="θ_0, or with `sft` the base model that it is made from.")
    start: Start = added_field(
        Start(),
        description="Begin at a later iteration, or with pairs that are there already; leave out to begin at θ_0.",
    )
    dataset: Dataset = Field(description="Prompts and real answers, and which rows are held out.")
    chat: ChatSection = Field(ChatSection(), description="How prompts become tokens.")
    sft: Sft | None = Field(
        None, description="Make θ_0 from the base model first; leave out where the model is already fine-tuned."
    )
    generate: Generate = Field(Generate(), description="How the opponent answers the prompts.")
    gather: Gather = Field(Gather(), description="Which answers become pairs.")
    finetune: Finetune = Field(Finetune(), description="Training against the opponent.")
    evaluate: Evaluate = Field(Evaluate(), description="What is measured on held-out rows.")
    harness: Harness | None = Field(None, description="Benchmark tasks of lm-evaluation-harness; leave out for none.")
    gate: Gate = Field(Gate(), description="Which model is best, and when to stop.")
    overrides: dict[int, dict[str, dict[str, Any]]] = Field(
        default_factory=dict, description="Settings of single iterations: {2: {finetune: {lr: 1e-7}}}."
    )
    control: Sft | None = Field(
        None,
        description="Also train θ_0 by SFT for as many steps as SPIN took, to compare (epochs and batch are SPIN's).",
    )
    sweep: Sweep | None = added_field(
        None,
        description="Variants of this profile, for `spinloop sweep`; each is a run that has no such section.",
    )
    runtime: Runtime = Field(Runtime(), description="How the machine is used; changes no result's key.")

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        for number, one in enumerate(self.dataset.parts.values()):
            if not one.path:
                raise ValueError(f"dataset.{f'sets.{number}.' if self.dataset.sets else ''}path: is required")
        beyond = [t for t in self.overrides if not 0 <= t < self.iterations]
        if beyond:
            raise ValueError(f"overrides.{beyond[0]}: this run has the iterations 0 to {self.iterations - 1}")
        for t in range(self.iterations) if self.overrides else [0]:
            at = self.at(t)
            where = f" (iteration {t})" if t in self.overrides else ""
            if self.chat.max_prompt_length >= at.finetune.max_length:
                raise ValueError(
                    f"chat.max_prompt_length ({self.chat.max_prompt_length}) must be below finetune.max_length "
                    f"({at.finetune.max_length}){where}, or no token of the answer is left"
                )
            if at.finetune.stop_epoch > at.finetune.schedule_epochs:
                raise ValueError(f"finetune.stop_epoch must not be above finetune.schedule_epochs{where}")
            if at.finetune.engine_logps:
                self._engine_logps_are_there(t, where)
            if self.start.iteration:
                self._loss_knows_its_models(at.finetune, where)
            self._lora_is_unsharded(at.finetune, where)
            if at.gather.pick != "all" and at.generate.n == 1:
                raise ValueError(
                    f"gather.pick{where}: {at.gather.pick} is one of several answers; set generate.n above 1"
                )
            if at.gather.pick == "hardest" and not at.generate.logprobs:
                raise ValueError(
                    f"gather.pick{where}: hardest goes by the engine's log-probs; set generate.logprobs: true"
                )
        self._gate_is_measured()
        self._start_is_there()
        for name, part in (("sft", self.sft), ("control", self.control)):
            if part and self.chat.max_prompt_length >= part.max_length:
                raise ValueError(f"chat.max_prompt_length must be below {name}.max_length")
        return self

    def _gate_is_measured(self) -> None:
        """Before hours of training: the gate needs its metric of every model."""
        metric, parts = self.gate.metric, [self.evaluate, *(self.at(t).evaluate for t in range(self.iterations))]
        if metric == "harness" and not self.harness:
            raise ValueError("gate.metric: harness needs a harness section; add one, or take auto")
        if metric.startswith("exact_match") and not all(part.exact_match for part in parts):
            raise ValueError(f"gate.metric: {metric} needs evaluate.exact_match; set it, or take auto")
        figure, _, kind = metric.partition("/")
        if figure == "repetition" and not all(part.answers for part in parts):
            raise ValueError(f"gate.metric: {metric} needs evaluate.answers: true; set it, or take auto")
        if kind == "sampled" and not all(part.sampled for part in parts):
            raise ValueError(f"gate.metric: {metric} needs evaluate.sampled: true; set it, or take auto")
        if kind == "deployed" and not all(part.deployed for part in parts):
            raise ValueError(f"gate.metric: {metric} needs evaluate.deployed: true; set it, or take auto")
        same = {"t0": "greedy", "t1": "sampled"}.get(kind)
        if same:
            raise ValueError(f"gate.metric: {metric} is measured as {figure}/{same}; take that")
        drawn = kind[1:] if kind[:1] == "t" else ""
        if drawn and not all(float(drawn) in part.temperatures for part in parts):
            raise ValueError(
                f"gate.metric: {metric} needs {drawn} among evaluate.temperatures (of every iteration); add it, or "
                "take another metric"
            )

    def _loss_knows_its_models(self, part: Finetune, where: str) -> None:
        """A run that begins behind θ_0 has neither θ_0 nor what it answered, and no earlier model than its first."""
        first, at = self.start.iteration, f"start.iteration: {self.start.iteration} begins behind θ_0"
        if part.loss == "alpha" and part.alpha.base_share:
            raise ValueError(f"finetune.loss{where}: {at}, which loss alpha mixes into the opponent; take sigmoid")
        if part.wants_first and 0 not in self.start.pairs:
            raise ValueError(
                f"finetune.loss{where}: {at}, whose answers loss tspin reads; give start.pairs.0, or set "
                "finetune.tspin.beta: 0"
            )
        if part.loss == "dft" and not part.reference_free and self.history > 1:
            raise ValueError(
                f"finetune.loss{where}: loss dft weighs answers by the model that they were sampled from, and the "
                f"models before θ_{first} are not there; set history: 1 or finetune.dft.reference_free: true"
            )

    def _lora_is_unsharded(self, part: Finetune, where: str) -> None:
        """An adapter is put on, and merged into, a model that each process has."""
        sharding = self.runtime.compute.sharding
        if part.lora and sharding in ("zero3", "fsdp2"):
            raise ValueError(
                f"finetune.lora{where} does not go with runtime.compute.sharding: {sharding}, as an adapter needs the "
                "whole model in each process; take zero2 or none, or leave lora out"
            )
        if part.lora and part.lora.quantize != "none" and sharding != "none":
            raise ValueError(
                f"finetune.lora.quantize{where} does not go with runtime.compute.sharding: {sharding}; take none"
            )

    def _start_is_there(self) -> None:
        """A later start needs its model, and the pairs before it that its first iteration trains on."""
        first, pairs = self.start.iteration, self.start.pairs
        if first and first >= self.iterations:
            raise ValueError(f"start.iteration: {first} leaves none of the {self.iterations} iterations to run")
        for name, part in (("sft", self.sft), ("control", self.control)):
            if first and part:
                raise ValueError(f"start.iteration: {first} begins behind θ_0, which {name} is about; leave {name} out")
        least = max(0, first + 1 - self.history)
        for t in range(least, first):
            if t not in pairs:
                raise ValueError(
                    f"start.pairs: iteration {first} trains on the pairs of iteration {t} too; give start.pairs.{t}, "
                    f"or set history to {first - t}"
                )
        if first and self.model.path.startswith("builtin:"):
            raise ValueError(f"start.iteration: {first} needs θ_{first}; name it in model.path")
        for t in pairs:
            read = t == 0 and any(self.at(later).finetune.wants_first for later in range(first, self.iterations))
            if not least <= t < self.iterations and not read:
                raise ValueError(f"start.pairs.{t}: this run trains on the pairs of {least} to {self.iterations - 1}")
            scoring = [later for later in range(first, self.iterations) if t in {of for _, of in self.scored(later)}]
            if any(self.at(later).finetune.engine_logps for later in scoring):
                raise ValueError(f"start.pairs.{t}: imported pairs have no log-probs; set finetune.engine_logps: false")

    def _engine_logps_are_there(self, t: int, where: str) -> None:
        if why := engine_logps_unusable(score_settings(self.at(t).finetune), self.chat):
            raise ValueError(f"finetune.engine_logps{where}: {why}")
        for made in sorted({of for _, of in self.scored(t)}):
            if not self.at(made).generate.logprobs:
                raise ValueError(
                    f"finetune.engine_logps{where} needs generate.logprobs: true in iteration {made}, whose pairs it "
                    "trains on"
                )

    def at(self, t: int) -> Config:
        """The config of iteration `t` (from 0), its overrides applied."""
        if t not in self.overrides:
            return self
        changed: dict[str, Section] = {}
        for section, fields in self.overrides[t].items():
            if section not in PER_ITERATION:
                raise ValueError(
                    f"overrides.{t}.{section}: only {', '.join(PER_ITERATION)} can differ between iterations"
                )
            base: Section = getattr(self, section)
            try:
                changed[section] = type(base).model_validate({**base.model_dump(exclude_unset=True), **fields})
            except ValidationError as error:
                raise ValueError(f"overrides.{t}.{section}.{_first(error, type(base)).rstrip('.')}") from None
        return self.model_copy(update=changed)

    def first(self, count: int) -> Config:
        """The same run with its first `count` iterations only, no question between them, and whatever is new."""
        kept = {t: parts for t, parts in self.overrides.items() if t < count}
        pairs = {t: place for t, place in self.start.pairs.items() if t < count}
        runtime = self.runtime.model_copy(update={"approve": False, "min_new_rows": 0})
        start = self.start.model_copy(update={"pairs": pairs})
        changed = {"iterations": count, "overrides": kept, "runtime": runtime, "start": start}
        return self.model_copy(update=changed)

    def sets(self, t: int) -> list[int]:
        """The iterations whose pairs iteration `t` trains on, oldest first."""
        return list(range(max(0, t + 1 - self.history), t + 1))

    def scored(self, t: int) -> list[tuple[int, int]]:
        """Whose log-probs of which pairs iteration `t` trains with; see `spin_core.config.finetune.scored`."""
        return scored(self.at(t).finetune, t, self.sets(t), self.start.iteration)

    def real_known(self, t: int, of: int, by: int) -> bool:
        """Whether the real answers of the pairs of iteration `of` are scored under θ_`by` when iteration `t` scores
        them: with that model's own pairs."""
        if of == by or by < self.start.iteration or (by, by) not in self.scored(by):
            return False
        return score_settings(self.at(by).finetune) == score_settings(self.at(t).finetune)

    def epochs(self, t: int) -> float:
        """Passes over its examples that iteration `t` makes."""
        part = self.at(t).finetune
        return part.stop_epoch or part.schedule_epochs

    def passes(self, t: int) -> float:
        """Passes over the rows: each has its pairs in each set of pairs, but for dft, where it has one example."""
        examples = 1 if self.at(t).finetune.loss == "dft" else sum(map(self.pairs_a_row, self.sets(t)))
        return self.epochs(t) * examples

    def pairs_a_row(self, t: int) -> int:
        """How many pairs a row has in the set of iteration `t`; of imported pairs one is assumed."""
        at = self.at(t)
        return 1 if t in self.start.pairs or at.gather.pick != "all" else at.generate.n


def load_profile(
    name: str, settings: Sequence[str] | None = None, changes: dict[str, Any] | None = None
) -> tuple[Config, Path]:
    """The config of a profile (a path, or the name of one in deployments/profiles) and the folder its relative paths
    start from.

    `settings` are `field.path=value` strings, values in YAML; `changes` are fields as a profile nests them. Raises
    BadInput naming file and field.
    """
    data, path = read_profile(name, settings, changes)
    return parse(data, str(path)), path.resolve().parent


def read_profile(
    name: str, settings: Sequence[str] | None = None, changes: dict[str, Any] | None = None
) -> tuple[Any, Path]:
    """The data of a profile's file with the changes of `load_profile`, not yet validated, and the file."""
    try:
        path = Path(name) if name.endswith((".yaml", ".yml")) or Path(name).is_file() else PROFILES / f"{name}.yaml"
        there = path.is_file()
    except OSError:  # a name that no file can have (too long)
        there = False
    if not there:
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
        raise BadInput(f"{name}: there is no such profile; give the path of a YAML file or one of: {known}.")
    data = yaml_reader.read_file(path)
    changed(data, settings or [])
    if changes and isinstance(data, dict):
        laid_over(data, changes)
    return data, path


def changed(data: Any, settings: Sequence[str]) -> Any:
    """A profile's data, changed in place by `field.path=value` strings. Raises BadInput for one of another form."""
    for setting in settings:
        _apply(data, setting)
    return data


def parse(data: Any, where: str) -> Config:
    """Validate a profile's data; `where` begins the sentence of a BadInput."""
    if not isinstance(data, dict):
        raise BadInput(f"{where}: a profile is a mapping of sections (model:, dataset:, …), not {type(data).__name__}.")
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise BadInput(f"{where}: {_first(error, Config)}") from None
    except ValueError as error:
        raise BadInput(f"{where}: {error}.") from None


def _apply(data: Any, setting: str) -> None:
    """Put one `a.b=value` into the profile's data; `a.b=` takes the field back to its default."""
    path, equals, value = setting.partition("=")
    if not equals or not path.strip():
        raise BadInput(f"--set {setting}: write it as field.path=value, for example finetune.beta=0.5.")
    parsed = yaml_reader.read(value.encode("utf-8", "surrogateescape"), f"--set {path}")
    put(data, path, parsed if value.strip() else DEFAULT, f"--set {setting}")


def put(data: Any, path: str, value: Any, where: str) -> None:
    """Set the field `a.b` of a profile's data, in place; DEFAULT takes it out. Raises BadInput, beginning with `where`,
    for a path through what has no fields."""
    keys = [int(k) if k.isdecimal() else k for k in path.strip().split(".")]
    for depth, key in enumerate(keys, 1):
        within = isinstance(data, list) and isinstance(key, int) and key < len(data)  # dataset.sets.0.weight
        if not isinstance(data, dict) and not within:
            above = ".".join(map(str, keys[: depth - 1]))
            what = f"a list of {len(data)}, counted from 0" if isinstance(data, list) else "not a section"
            raise BadInput(f"{where}: {above} is {what}.")
        if depth < len(keys):
            data[key] = {} if not within and data.get(key) is None else data[key]
            data = data[key]
        elif value is not DEFAULT:
            data[key] = value
        elif within:
            del data[key]
        else:
            data.pop(key, None)


def laid_over(data: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A profile's data, changed in place by fields as a profile nests them."""
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(data.get(name), dict):
            laid_over(data[name], value)
        else:
            data[name] = value
    return data


def _first(error: ValidationError, model: type[BaseModel]) -> str:
    """The first of pydantic's complaints as one sentence: field path, what is wrong, what was given, the nearest
    known name."""
    first = error.errors(include_url=False)[0]
    path = ".".join(str(part)[:LONGEST_QUOTE] for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), _fields(model, first["loc"][:-1]), n=1)
        section = " " * (len(first["loc"]) > 1) + ".".join(p for p in first["loc"][:-1] if isinstance(p, str))
        return f"{path}: unknown field" + (
            f"; did you mean {near[0]}?" if near else f"; see `spinloop run --help{section}` for the fields."
        )
    if first["type"] == "missing":
        return f"{path}: is required."
    message = first["msg"].removeprefix("Value error, ")
    text = repr(first["input"])
    if len(text) > LONGEST_QUOTE:
        text = f"{text[:LONGEST_QUOTE]}… ({len(text):,} characters)"
    given = "" if isinstance(first["input"], dict) or not path else f" (given: {text})"
    return f"{path}: {message}{given}." if path else f"{message}."


def _fields(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """The names that the section at `loc` has; a number in it counts the sections of a list."""
    for part in loc:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        section = section_of(annotation) or listed_section(annotation)
        if section is None:
            return []
        model = section
    return list(model.model_fields)
