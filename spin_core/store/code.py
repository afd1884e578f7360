"""A digest of a stage's code: advice, not identity.

It is kept beside an output and compared when a step is cached, so that a person sees "the code changed and VERSION did
not". It never enters a key: a key that moves with every edit hides what moved it (the two ancestors that hashed code
gave it up). Reads source files and imports none of them. It does not see imports by string
(`importlib.import_module`), data files but DATA, or other people's packages.
"""

from __future__ import annotations

import ast
import hashlib
from functools import lru_cache
from pathlib import Path

from spin_core.errors import StoreError
from spin_core.store.keys import canonical

ROOT = Path(__file__).resolve().parents[2]
# How a stage is run, shown or stored is not what it computes.
LEFT_OUT = ("errors", "job", "config.base", "config.runtime", "store")
# `kind` is the u of u"text"; the other one is a comment.
UNSEEN = {"kind", "type_comment"}
DATA = (".j2", ".css", ".js")
"""Templates, style sheets, scripts; those that begin with a module's name are its own: `page.html.j2` of `page`."""


def code_digest(module_name: str, root: Path = ROOT) -> str:
    """sha256 over the stage's module and the modules of its package that it imports, transitively, in functions too.

    Immune to comments, layout and docstrings, and equal on Python 3.11 to 3.13. `root` is the folder that holds the
    package. Raises StoreError if a module cannot be found or parsed.
    """
    return hashlib.sha256(canonical(code_parts(module_name, root))).hexdigest()


def code_parts(module_name: str, root: Path = ROOT) -> dict[str, str]:
    """Module name → sha256 of its code, for every module that `code_digest` covers; file name → that of its DATA."""
    if _source(root, module_name) is None:
        raise StoreError(f"{module_name}: no such module under {root}; give the stage's module name.")
    parts: dict[str, str] = {}
    waiting = [module_name]
    while waiting:
        name = waiting.pop()
        file = _source(root, name)
        if name in parts or file is None:
            continue
        try:
            parts[name], imports = _parsed(file.read_bytes(), name, file.name == "__init__.py")
            for data in (other for other in file.parent.glob(f"{file.stem}.*") if other.suffix in DATA):
                parts[data.relative_to(root).as_posix()] = hashlib.sha256(data.read_bytes()).hexdigest()
        except (OSError, SyntaxError, ValueError) as error:
            raise StoreError(f"{file}: cannot be read as Python ({error}).") from error
        waiting += imports
    return parts


# Before CPython 3.11.8 and 3.12.2 (gh-106905), ast.parse raises SystemError when another thread, of any library, makes
# a syntax tree at the same moment: seen in one of ten cached runs. It comes from a check behind the whole tree.
TRIES = 10


@lru_cache(maxsize=512)
def _parsed(source: bytes, name: str, is_package: bool) -> tuple[str, list[str]]:
    """(sha256 of the code, imported names). Kept, because parsing ten modules takes 0.1 s, for each shard of a run."""
    for left in reversed(range(TRIES)):
        try:
            tree = ast.parse(source)
            break
        except SystemError:
            if not left:
                raise
    return hashlib.sha256(_dump(tree).encode("utf-8", "surrogatepass")).hexdigest(), _imports(tree, name, is_package)


def _source(root: Path, name: str) -> Path | None:
    base = root.joinpath(*name.split("."))
    for file in (base / "__init__.py", base.with_name(base.name + ".py")):
        if file.is_file():
            return file
    return None


def _imports(tree: ast.AST, module: str, is_package: bool) -> list[str]:
    """Dotted names that may be modules of the same top-level package (`from a import b`: both a and a.b)."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(
                [*(package[: len(package) - node.level + 1] if node.level else []), *filter(None, [node.module])]
            )
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    top = module.split(".")[0]
    return sorted(n for n in names if n.split(".")[0] == top and not _left_out(n))


def _left_out(name: str) -> bool:
    inside = name.partition(".")[2]
    return any(inside == part or inside.startswith(f"{part}.") for part in LEFT_OUT)


def _dump(node: object) -> str:
    """The syntax tree as text, without positions, empty fields (their number grows with Python) and bare strings."""
    if isinstance(node, ast.AST):
        fields = [(n, v) for n, v in sorted(ast.iter_fields(node)) if v is not None and v != [] and n not in UNSEEN]
        return f"{type(node).__name__}({','.join(f'{n}={_dump(v)}' for n, v in fields)})"
    if isinstance(node, list):
        return f"[{','.join(_dump(item) for item in node if not _is_bare_string(item))}]"
    return repr(node)


def _is_bare_string(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
