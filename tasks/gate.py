"""gate: the decision after an iteration. The one step whose output the DAG itself reads."""

import json

from spin_core.job import Place
from spin_core.runtime.step import Step
from spin_core.stages import gate as core
from tasks.runner.planning import Pending
from tasks.runner.run import Run
from tasks.runner.stage import stage


@stage
def gate(run: Run, t: int, players: dict[str, list]):
    config = core.Config(gate=run.config.gate, seed=run.config.seed, first=run.config.start.iteration)
    return Step(core, f"iter {t}", config, Place("iteration", t)), players


def goes_on(run: Run, decision) -> bool:
    """Whether the next iteration is to run. Waits for the decision only if there is a policy that stops."""
    how = run.config.gate
    if "stop" not in (how.fixed_point, how.worse, how.alarm) or isinstance(decision, Pending):
        return True
    ref = decision if run.planning else decision.result()
    made = json.loads((run.store.tree(ref.digest) / "decision.json").read_text(encoding="utf-8"))
    if not made["go_on"] and not run.planning:
        run.stopped = made["reason"]
        run.progress.step(f"stops   after “{made['outcome']}”, as the profile's gate has it", None)
    return made["go_on"]
