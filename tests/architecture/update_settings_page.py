"""Writes docs/settings.md: every setting of a profile, from the config model. Run it after a change there:
python -m tests.architecture.update_settings_page
"""

from __future__ import annotations

from pydantic import BaseModel

from flows.cli.fields import choices_text, default_text, sections
from spin_core.config.base import section_of
from spin_core.config.profile import Config
from tests.architecture.scan import ROOT
from tests.architecture.update_code_digests import modules

PAGE = ROOT / "docs" / "settings.md"
COMMAND = "python -m tests.architecture.update_settings_page"
HEAD = f"""# Every setting

Generated from the config model (`{COMMAND}`; a test says when it is stale). `--set SECTION.NAME=VALUE` changes one,
`spinloop run --help SECTION` prints the same. A setting that is in a key changes which artifacts a step takes from the
store; a default that came later than the first keys is left out of them.
"""


def page() -> str:
    """The page's Markdown: a table for each section, one for what stands in none."""
    parts = [HEAD, "## Outside of every section\n\n" + _table(Config, "")]
    for path, model in sections():
        field = Config.model_fields[path.split(".")[0]]
        text = (model.__doc__ or "").strip().split("\n\n")[0] if "." in path else field.description or ""
        parts.append(f"## `{path}`\n\n{_plain(text)}\n\n{_keys(model)}\n\n{_table(model, f'{path}.')}")
    return "\n".join(parts)


def _keys(model: type[BaseModel]) -> str:
    """Which stages have the section in their key, as their own config says."""
    stages = [name for name, module in modules().items() if _has(module.Config, model)]
    return f"In the key of: {', '.join(stages)}." if stages else "In no key; what it names enters keys by its content."


def _has(config: type[BaseModel], model: type[BaseModel]) -> bool:
    inner = [made for field in config.model_fields.values() if (made := section_of(field.annotation))]
    return any(one is model or _has(one, model) for one in inner)


def _table(model: type[BaseModel], before: str) -> str:
    lines = ["| setting | default | may be | what it does |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if section_of(field.annotation) is None:
            cells = [f"`{before}{name}`", _code(default_text(field)), choices_text(field), field.description or ""]
            lines.append(f"| {' | '.join(_plain(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else "Sections only.\n"


def _code(text: str) -> str:
    return f"`{text}`" if text and text != "required" else text


def _plain(text: str) -> str:
    """On one line, with nothing that ends a cell."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(page().splitlines()):,} lines")
