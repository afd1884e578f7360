"""docs/settings.md: every setting of a profile, from the config model."""

from __future__ import annotations

from pydantic import BaseModel

from flows.cli.fields import choices_text, default_text, sections
from spin_core.config.base import section_of
from spin_core.config.profile import Config
from tests.architecture.reference.text import COMMAND, code, filled, table
from tests.architecture.update_code_digests import modules

HEAD = f"""# Every setting

Generated from the config model (`{COMMAND}`; a test says when it is stale).
`--set SECTION.NAME=VALUE` changes one, `spinloop run --help SECTION` prints the same. A setting
that is in a key changes which artifacts a step takes from the store; a default that came later than the first keys is
left out of them.
"""


def page() -> str:
    """The page's Markdown: a table for each section, one for what stands in none."""
    parts = [HEAD, "## Outside of every section\n\n" + _table(Config, "")]
    for path, model in sections():
        field = Config.model_fields[path.split(".")[0]]
        text = (model.__doc__ or "").strip().split("\n\n")[0] if "." in path else field.description or ""
        parts.append(f"## `{path}`\n\n{filled(text)}\n\n{_keys(model)}\n\n{_table(model, f'{path}.')}")
    return "\n".join(parts)


def _keys(model: type[BaseModel]) -> str:
    """Which stages have the section in their key, as their own config says."""
    stages = [name for name, module in modules().items() if has(module.Config, model)]
    return f"In the key of: {', '.join(stages)}." if stages else "In no key; what it names enters keys by its content."


def has(config: type[BaseModel], model: type[BaseModel]) -> bool:
    """Whether a stage's config has the section, in a section of its own too."""
    inner = [made for field in config.model_fields.values() if (made := section_of(field.annotation))]
    return any(one is model or has(one, model) for one in inner)


def _table(model: type[BaseModel], before: str) -> str:
    lines = []
    for name, field in model.model_fields.items():
        if section_of(field.annotation) is None:
            default = default_text(field)
            shown = default if default == "required" else code(default)
            lines.append([f"`{before}{name}`", shown, choices_text(field), field.description or ""])
    return table(("setting", "default", "may be", "what it does"), lines) or "Sections only.\n"
