"""Small files, small functions, a docstring on each; stages of one shape, and a warning when their code moved."""

from __future__ import annotations

import ast
import importlib
import inspect

import pytest
from pydantic import BaseModel

from flows import stages as pool_flows
from spin_core.config.runtime import Pools
from spin_core.config.stage_table import ORDER
from spin_core.estimate.needs import NEEDS
from spin_core.runtime.step import KeyedStep, Step
from spin_core.sources.resolve import Ref
from spin_core.store.keys import STAGE
from tasks.runner.stage import task_of
from tests.architecture.scan import ROOMS, ROOT, python_files, sizes, undocumented, where
from tests.architecture.update_code_digests import COMMAND, GOLDEN, current, modules, recorded, stages


def test_python_files_and_functions_are_small():
    """Catches a file over 400 lines or a function over 60: nobody holds it in the head."""
    bad = [
        f"{where(file)}, {hit}"
        for file in python_files(*ROOMS)
        for hit in sizes(file.read_text(encoding="utf-8"), 400, 60)
    ]
    assert not bad, "split these where a reader would:\n" + "\n".join(bad)


def test_tasks_and_the_picture_fit_their_rooms():
    """Catches a task file that computes (a stage's task is a description of at most 60 lines) and a DAG that no longer
    fits one screen (over 130)."""
    limits = {file: 60 for file in python_files("tasks") if file.parent.name == "tasks"}
    limits |= {ROOT / "flows" / "spin.py": 130}
    bad = [
        f"{where(file)}: {hit}"
        for file, limit in limits.items()
        for hit in sizes(file.read_text(encoding="utf-8"), limit, 60)
    ]
    assert not bad, "what does not belong to the room goes to spin_core:\n" + "\n".join(bad)


def test_modules_and_public_names_have_docstrings():
    """Catches a public function of spin_core whose shapes, units and errors a reader must guess."""
    bad = [
        f"{where(f)}, {hit}"
        for f in python_files(*ROOMS)
        for hit in undocumented(f.read_text(encoding="utf-8"), public=where(f).startswith("spin_core/"))
    ]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("stage", stages())
def test_stage_has_the_one_shape(stage):
    """Catches a stage without VERSION, with a config that can change after its key was made, or with other
    parameters."""
    module = modules()[stage]
    assert STAGE.fullmatch(module.NAME)
    assert type(module.VERSION) is int and module.VERSION >= 1
    assert (
        issubclass(module.Config, BaseModel)
        and module.Config.model_config["frozen"]
        and module.Config.model_config["extra"] == "forbid"
    )
    assert list(inspect.signature(module.run).parameters) == ["inputs", "config", "job"]


def test_stage_names_are_unique_and_all_in_the_table():
    """Catches two stages that share their keys, and a stage that costs, lineage and pools know nothing of."""
    files = [file for file in python_files("spin_core/stages") if file.stem != "__init__"]
    assert len(modules()) == len(files), "two stages have one NAME"
    assert sorted(ORDER) == stages(), "spin_core/config/stage_table.py has a line for each stage"
    assert set(Pools.model_fields) == set(NEEDS) <= set(ORDER)
    assert all(pool_flows.__dict__[name].name == name for name in NEEDS), "flows/stages.py has a flow for each"


def test_stage_in_a_renamed_file_keeps_its_key(tmp_path, monkeypatch):
    """Catches a key, a task or a deployment that takes its name from a file: a rename would compute everything
    again."""
    (tmp_path / "other_name.py").write_text((ROOT / "spin_core" / "stages" / "gather.py").read_text(encoding="utf-8"))
    monkeypatch.syspath_prepend(str(tmp_path))
    gather, renamed = modules()["gather"], importlib.import_module("other_name")
    inputs = {"rows": Ref(digest="a" * 64), "answers": [Ref(digest="b" * 64)]}
    steps = [Step(module, "", module.Config.model_validate({"gather": {}})) for module in (gather, renamed)]
    assert KeyedStep(steps[0], inputs).key == KeyedStep(steps[1], inputs).key
    assert steps[1].title == "gather" == task_of(renamed).name


@pytest.mark.parametrize("stage", stages())
def test_stage_has_a_task_of_its_name(stage):
    """Catches a stage that no flow can run as a step."""
    file = ROOT / "tasks" / f"{stage}.py"
    assert file.is_file(), f"tasks/{stage}.py is missing"
    defined = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign):
            defined |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    assert stage in defined, f"tasks/{stage}.py defines no {stage}"


@pytest.mark.parametrize("stage", stages())
def test_stage_code_is_the_recorded_one(stage):
    """Catches a stage whose meaning changed while VERSION stayed: old outputs would be served for new code."""
    same = recorded().get(stage) == current(stage)
    assert same, (
        f"the code of stage {stage} (or of a module it imports) is not the one in {where(GOLDEN)}. If its output can "
        f"differ for the same inputs and config, raise VERSION in spin_core/stages/{stage}.py; then, either way, run "
        f"`{COMMAND}` and commit the file with the change."
    )


def test_recorded_code_has_no_other_stages():
    """Catches a removed or renamed stage that is still recorded."""
    assert set(recorded()) <= set(stages()), f"run `{COMMAND}`"
