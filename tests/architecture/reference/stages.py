"""docs/stages.md: every stage, from its module's docstring, its Config and its VERSION."""

from __future__ import annotations

import ast
import inspect
import re
from itertools import pairwise
from types import ModuleType

from pydantic import BaseModel

from flows.cli.fields import sections
from spin_core.config.base import section_of
from spin_core.config.stage_table import STAGES, StageLine
from tests.architecture.reference.text import COMMAND, filled, plain
from tests.architecture.update_code_digests import modules

LABEL = re.compile(r"(?m)^(?=\w+  )")
HEAD = f"""# Every stage

Generated from the stages' own modules (`{COMMAND}`; a test says when it is stale).
A stage is one kind of step. What it reads, its settings and its VERSION are its key: where these are the same, the
step is *Cached*. A VERSION rises when the stage's output or meaning changes, and its steps are then computed again.
Files are those of the artifact's folder, `trees/<digest>/` ([files of the store](store-files.md)).
"""


def page() -> str:
    """The page's Markdown: the stages in the order of the DAG."""
    known = modules()
    return "\n".join([HEAD, *(_stage(line, known[line.name]) for line in STAGES)])


def history(module: ModuleType) -> dict[int, str]:
    """What each VERSION from 2 on changed: the docstring below `VERSION`."""
    body = ast.parse(inspect.getsource(module)).body
    for line, after in pairwise(body):
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "VERSION":
            said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and after.value.value
            entries = re.split(r"(?m)^(?=\d+: )", said) if isinstance(said, str) else []
            return {int(number): plain(text) for number, _, text in (one.partition(": ") for one in entries if one)}
    return {}


def parts(text: str) -> tuple[list[str], dict[str, str]]:
    """Of a stage's docstring: its paragraphs, and what stands behind `inputs`, `outputs` and the like."""
    prose, labelled = list[str](), dict[str, str]()
    for paragraph in text.split("\n\n"):
        for part in LABEL.split(paragraph):
            label, _, rest = part.partition("  ")
            if re.fullmatch(r"\w+", label):
                labelled[label] = plain(rest)
            elif part.strip():
                prose.append(filled(part))
    return prose, labelled


def _stage(line: StageLine, module: ModuleType) -> str:
    prose, labelled = parts(inspect.getdoc(module) or "")
    said = [filled(f"**{label}**: {text}", "- ") for label, text in labelled.items()]
    said.append(filled(f"**settings in its key**: {_settings(module.Config) or 'none'}", "- "))
    if line.processes:
        said.append("- **several processes** can share it (`runtime.compute`)")
    versions = [f"- **VERSION {module.VERSION}**"]
    versions += [filled(f"{number}: {text}", "    - ") for number, text in sorted(history(module).items())]
    return "\n\n".join([f"## {line.name}", *prose, "\n".join([*said, *versions])]) + "\n"


def _settings(config: type[BaseModel]) -> str:
    """The profile's sections that a stage's config has, and its other fields."""
    shown = []
    for name, field in config.model_fields.items():
        inner = section_of(field.annotation)
        if paths := [path for path, model in sections() if model is inner]:
            shown.append(" or ".join(f"[`{path}`](settings.md#{path.replace('.', '')})" for path in paths))
        else:
            shown.append(f"`{name}`" + (f" ({', '.join(inner.model_fields)})" if inner else ""))
    return ", ".join(shown)
