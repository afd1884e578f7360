"""One execution of the DAG, or one plan of it; and `runs/<name>/`, where a person finds what its steps did."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect.events import emit_event
from prefect.logging import get_run_logger

from spin_core.analysis import account, decoders
from spin_core.analysis.costs import costs
from spin_core.analysis.forecast import sentences
from spin_core.config.generate import Decoding
from spin_core.config.profile import Config
from spin_core.config.stage_table import EVENTS
from spin_core.errors import BadInput, SpinloopError, StoreError, one_line
from spin_core.report import run_card, run_facts, trained, watch
from spin_core.report.run import facts_of, sections
from spin_core.runtime.child import Children
from spin_core.runtime.step import Step, shards
from spin_core.sources import resolve
from spin_core.sources.deployment import decoding_of, not_applied
from spin_core.sources.resolve import Ref, SourceKind
from spin_core.stages.report import STEPS_MARK
from spin_core.store import keys, runs
from spin_core.store.store import Record, Store
from spin_core.trackers.redact import settings
from tasks.runner.planning import Pending, Planner, forecasts
from tasks.runner.pools import Pools
from tasks.runner.steps import Steps
from tasks.runner.trackers import Trackers
from tasks.runner.watch import LOOKED_AT, look, settings_of

TRACKER_SECONDS = (60.0, 5.0)  # that the end of a run waits for a tracker; of one that failed


class Run(Steps):
    """The steps of one config. `planning`: looks them up instead. `pools`: where missing stages run; None: here.
    `origin`: the parameters of the deployment run that this is, and `follow`: of which new artifact (`dataset`,
    `model`) another run is to go on, for the events that start it."""

    def __init__(
        self,
        config: Config,
        store: Store,
        children: Children,
        base_dir: Path,
        planning: Planner | None = None,
        pools: Pools | None = None,
        origin: dict | None = None,
        follow: str = "",
    ):
        super().__init__(store, children, config.runtime, pools)
        self.config, self.base_dir, self.planning = config, base_dir, planning
        self.origin, self.follow = origin or {}, follow
        self.deployed: Decoding | None = None  # what the base model's generation_config.json says
        self.stopped = ""  # why the gate ended the run before its last iteration, if it did
        self.seen: watch.Seen | None = None  # what is new in its dataset
        self.report = Path()  # of a finished run: the tree of its report
        self.sources: list[tuple[str, Ref, str]] = []
        self.progress.meters.profile = config.name
        if config.runtime.trackers and not planning:
            profile = settings(config.model_dump(mode="json"), base_dir)
            head = {"project": config.name, "run": run_name(config), "config": profile}
            self.trackers = Trackers([*config.runtime.trackers], store, head, self.progress)

    def note(self, step: Step, record: Record, cached: bool) -> Ref:
        if kind := EVENTS.get(step.stage):
            self._emit(kind, step, record, cached)
        ref = super().note(step, record, cached)
        said = forecasts(step) and self.forecast(step.place.iteration or 0, record.facts.get("summary", {}))
        if said:
            self.progress.step(f"        {' '.join(said)}", None)
        return ref

    def ahead(self) -> list[str]:
        """Also the next iteration, which is submitted when the gate has let it begin."""
        decided = sum(title.startswith("gate[") for title in self.titles) + self.config.start.iteration
        more = decided < self.config.iterations and not self.stopped
        return super().ahead() + [f"iter {decided}"] * (more and any(t.startswith("gate[") for t in self.titles))

    def forecast(self, t: int, summary: Mapping[str, Any]) -> list[str]:
        """What the training of iteration `t` can at best do, by the summary of its opponent's score of its pairs."""
        config = self.config.at(t)
        draws = config.generate.drawing_as(self.deployed)
        return sentences(summary, config.finetune, None if draws.decoder == decoders.DEPLOYED else draws.decoding)

    def _emit(self, kind: str, step: Step, record: Record, cached: bool) -> None:
        """Emit `spinloop.dataset.created` or `spinloop.model.created` of a new artifact, for Prefect's automations.
        Also of a model that was there (a run may have been killed before it emitted the event), where another run is to
        go on from it: starting that twice is harmless.

        Its resource is `spinloop.<kind>.<digest>`. The label `spinloop.next` is `iteration` where this run ends here
        and another one is to go on (deployments/automations.yaml starts it, from the payload).
        """
        last = kind == "dataset" or step.place.iteration == self.config.iterations - 1
        followed = last and self.follow == kind
        if cached and not (followed and kind == "model"):
            return
        emit_event(
            event=f"spinloop.{kind}.created",
            resource={
                "prefect.resource.id": f"spinloop.{kind}.{record.digest}",
                "prefect.resource.name": f"{self.config.name} {step.title}",
                "spinloop.next": "iteration" if followed else "none",
            },
            payload={"run": run_name(self.config), "step": step.title, "digest": record.digest, **self.origin},
        )

    def source(self, path: str, kind: SourceKind, revision: str = "", split: str = "", config: str = "") -> Ref:
        """A model or dataset outside the store, by content, or the digest of an artifact. Raises BadInput naming it."""
        ref = resolve.find(self.store, path, kind, revision, self.base_dir, split, config)
        self.sources.append((kind, ref, revision))
        return ref

    @property
    def names_deployment(self) -> bool:
        """Whether a setting goes by how the model is deployed: then that is read of a model of the store, too."""
        return bool(self._as_deployed()) or self.config.gate.metric.endswith("/deployed")

    def _as_deployed(self) -> list[int]:
        """The iterations whose opponent draws as the model is deployed."""
        return [t for t in range(self.config.iterations) if self.config.at(t).generate.decoder == "deployed"]

    def deployment(self, model: Any) -> Decoding | None:
        """How `model` (a Ref; None for one that is made here, which says nothing) is deployed. Raises
        BadInput where the opponent is to draw so and the model does not say how, or not what the profile can do."""
        wanted = self._as_deployed()
        is_read = isinstance(model, Ref) and (model.path or self.names_deployment)
        folder = model.locate(self.store) if is_read else None
        said = decoding_of(folder) if folder else None
        if wanted and said is None:
            raise BadInput(
                "generate.decoder: deployed: the model has no generation_config.json with do_sample, temperature, "
                "top_p or top_k, so it does not say how it is deployed; take greedy (what transformers then does) or "
                "sampled (what vLLM does), or set generate.temperature."
            )
        if said and said.temperature == 0 and any(self.config.at(t).generate.attempts > 1 for t in wanted):
            raise BadInput(
                "generate.attempts: the model is deployed greedily (generation_config.json), and greedy decoding gives "
                "the same answer again; leave attempts out."
            )
        if said and said.temperature == 0 and any(self.config.at(t).generate.n > 1 for t in wanted):
            raise BadInput(
                "generate.n: the model is deployed greedily (generation_config.json), and greedy decoding gives the "
                "same answer each time; leave n out, or take decoder: sampled."
            )
        if folder:
            self._gate_is_measured(said)
        left = not_applied(folder) if folder and said else ""
        if self.planning:
            self.planning.notes += [left] * bool(left)
        else:
            for sentence in (*decoders.sentences(self.config, said), *[left] * bool(left)):
                self.progress.step(f"decoder {sentence}", None)
        return said

    def _gate_is_measured(self, deployed: Decoding | None) -> None:
        """Before hours of training: a gate that goes by answers as the model is deployed needs them. Of a model that is
        made here nothing is known yet: there the gate itself says so."""
        metric, part = self.config.gate.metric, self.config.evaluate
        if not metric.endswith("/deployed") or decoders.DEPLOYED in decoders.measured(part, deployed):
            return
        same = next((kind for kind, how in decoders.measured(part, None).items() if how == deployed), "")
        why = "does not say how it is deployed (generation_config.json: do_sample, temperature, top_p, top_k)"
        if same:
            why = f"is deployed {deployed}, which is measured as {same}"
        raise BadInput(f"gate.metric: {metric}: the model {why}; take {metric.split('/')[0]}/{same or 'greedy'}.")

    def tokenizer(self, model: Any) -> Any:
        """The tokenizer's files of `model` (a future, or a Ref, or in a plan Pending) as an input of its own."""
        if isinstance(model, Pending):
            return model
        return resolve.tokenizer_of(self.store, model if isinstance(model, Ref) else model.result())

    def has_tokens(self, pairs: Any) -> bool:
        """Whether pairs (a future, or in a plan a Ref or Pending) have ids of their own, as far as it is known."""
        if isinstance(pairs, Pending):
            return False
        ref = pairs if isinstance(pairs, Ref) else pairs.result()
        return (self.store.tree(ref.digest) / "tokens.json").is_file()

    def shards(self, tokens: Any) -> list[Any]:
        """The shards of prompts that `tokens` (a future, or in a plan a Ref or Pending) lists."""
        if isinstance(tokens, Pending):
            return [tokens]
        ref = tokens if isinstance(tokens, Ref) else tokens.result()
        return list(shards(self.planning.holder(self.store, ref) if self.planning else self.store, ref))

    def worth_training(self, tokens: Any) -> bool:
        """Whether the run goes on behind its rows' `tokens` (a future): enough of them are new since the last run that
        trained. What is new is said. A plan goes on to its end."""
        if self.planning:
            return True
        tokens.result()
        made = {entry.stage: entry.key for entry in self.ledger if entry.stage in LOOKED_AT}
        records = {stage: record for stage, key in made.items() if (record := self.store.record(stage, key))}
        self.seen = look(self.store, self.config, run_name(self.config), records, bool(self.redo.wanted))
        if self.seen.since or self.seen.least:
            for line in filter(None, watch.text(self.seen).splitlines()):
                self.progress("dataset", {"log": line})
        return not self.seen.held_back

    def finish(self, outcome: Callable[[], Ref]) -> dict:
        """As `_finish`; the trackers then have what was sent to them, or a warning says that they have not."""
        wait = TRACKER_SECONDS[1]
        try:
            done = self._finish(outcome)
            wait = TRACKER_SECONDS[0]
            return done
        finally:
            if self.trackers:
                self.trackers.close(wait)

    def _finish(self, outcome: Callable[[], Ref]) -> dict:
        """Wait for the last step (`outcome` gives its Ref) and lay out `runs/<name>/` for people; after a failure too,
        for what did finish.

        Raises the first failure once every step that was already at work has ended (and is published).
        """
        ref, name = None, run_name(self.config)
        try:
            ref = outcome()
        except SpinloopError as error:
            self.failures.append(error)
        except Exception as error:
            if not self.failures:
                self.failures.append(self.unexpected(error))
        self.settle()
        if ref is None:
            with suppress(StoreError):  # the first failure is what is raised; often it is this one
                self._lay_out(name, None)
            raise self.failures[0]
        seen = self.seen
        if seen and seen.since and seen.held_back:  # the results are those of the run that it was compared with
            name, folder = seen.since.run, self.store.root / "runs" / seen.since.run
            if any(folder.glob("costs-*.json")):  # else its ledger alone says what it cost, and would count no longer
                self._keep_costs(name)
        else:
            self.report = self.store.tree(ref.digest)
            folder = self._lay_out(name, self.report)
            trained.keep(self.store, name, self.ledger, settings_of(self.config), datetime.now(UTC))
        if seen:
            self.store.write_run_file(name, watch.FILE, json.dumps(seen.as_json(), indent=1).encode())
        return {
            "run": name,
            "folder": str(folder),
            "report": str(folder / "report.html"),
            "notes": self.store.notes,
            "stopped": self.stopped,
            "not_started": seen.not_started if seen else "",
            "new": seen.sentence if seen and seen.has_news else "",
            **self.counts(),
        }

    def _lay_out(self, name: str, report: Path | None) -> Path:
        """`runs/<name>/`: a link for each step's output in the order of the DAG, the ledger, a link to the best model
        so far; of a run that came to its report that report with the run in it: costs, lineage, steps."""
        store, ledger = self.store, self.ledger
        store.write_run_file(name, run_facts.SOURCES, run_facts.sources_file(self.sources))
        place = {title: i for i, title in enumerate(self.titles, 1)}
        ledger.sort(key=lambda entry: place[entry.title])
        words = {e.title: re.findall("[A-Za-z0-9]+", e.label.replace("θ", "theta")) for e in ledger}
        labels = {e.title: "-".join([f"{place[e.title]:03}", e.stage, *words[e.title]]) for e in ledger}
        store.link_run(name, {labels[e.title]: e.digest for e in ledger if e.digest})
        steps = [entry.as_json() for entry in ledger]
        store.write_run_file(name, run_facts.STEPS, json.dumps(steps, indent=1).encode())
        self._keep_costs(name)
        best = run_facts.best_tree(store, name)
        if best or report:
            store.link_run(name, {runs.BEST: best})
        folder = store.root / "runs" / name
        if report:
            downloaded: list[dict] = []
            with suppress(OSError, ValueError):
                downloaded = list(json.loads((folder / run_facts.SOURCES).read_text(encoding="utf-8")))
            run_part = sections(ledger, lambda entry: store.record(entry.stage, entry.key), downloaded, self.seen)
            page = (report / "report.html").read_text(encoding="utf-8").replace(STEPS_MARK, run_part)
            store.write_run_file(name, "report.html", page.encode())
            store.write_run_file(name, "report.md", (report / "report.md").read_bytes())
        self.throughput.write(store, name)
        card(store, name)
        return folder

    def _keep_costs(self, name: str) -> None:
        """A file for this execution, beside those of others: what it computed, and what was cached."""
        made = costs(self.ledger, lambda step: facts_of(self.store.record(step.stage, step.key) if step.key else None))
        file = account.name_of(datetime.now(UTC), uuid.uuid4().hex[:6])
        self.store.write_run_file(name, file, account.file_of(self.config.name, made))


def run_name(config: Config) -> str:
    """`demo-3fa9c1`: the profile's name and a digest of its settings, so that the same settings are the same run
    folder."""
    payload = keys.config_payload(config)
    payload.pop("runtime")
    return f"{config.name}-{keys.key_of(payload)[:6]}"


def card(store: Store, name: str) -> None:
    """The model card of runs/<name>/. Without it the run is complete: whatever fails is a warning in its log."""
    try:
        run_card.write(store, name)
    except Exception as error:
        get_run_logger().warning(
            f"This run has no model card ({one_line(error, 300, kind=True)}); its report and models are whole."
        )
