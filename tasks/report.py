"""report: the table of iterations, the curves and sample answers."""

from spin_core.runtime.step import Step
from spin_core.sources.resolve import is_here
from spin_core.stages import report as core
from spin_core.store import keys
from tasks.runner.run import Run
from tasks.runner.stage import stage


@stage
def report(run: Run, lines: list[dict], inputs: dict[str, list], label: str = ""):
    profile = keys.config_payload(run.config)
    del profile["runtime"]
    # A path of this machine would be in the key and in a page that people send on; a hub id is worth showing.
    places = (("model", "path"), ("dataset", "path"), ("dataset", "test_path"), ("harness", "include_path"))
    for section, field in places:
        place = (profile.get(section) or {}).get(field)
        if place and is_here(place, run.base_dir):
            profile[section][field] = "(local)"
    for t, place in profile.get("start", {}).get("pairs", {}).items():
        profile["start"]["pairs"][t] = "(local)" if is_here(place, run.base_dir) else place
    config = core.Config(name=run.config.name, profile=profile, rows=[core.RowInputs(**line) for line in lines])
    return Step(core, label, config), inputs
