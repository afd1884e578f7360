"""Scanners over source text: what a file imports, calls, mutates, and how big it is. Each returns sentences "line N:
…"; none is good."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("flows", "tasks", "spin_core", "deployments", "tests")
SHIPPED = ROOMS[:-1]

PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {
    "eval", "exec", "builtins.eval", "builtins.exec", "yaml.load", "yaml.load_all", "yaml.full_load",
    "yaml.unsafe_load",
    "torch.load", "torch.save", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",
}  # fmt: skip
KEYWORDS = {"trust_remote_code", "shell", "allow_pickle"}
CLOCKS = {
    "time.time", "time.time_ns", "time.localtime", "time.gmtime", "datetime.datetime.now", "datetime.datetime.utcnow",
    "datetime.datetime.today", "datetime.date.today",
}  # fmt: skip
OS_MUTATES = {
    "rename", "renames", "replace", "unlink", "remove", "mkdir", "makedirs", "rmdir", "removedirs", "chmod",
    "fchmod", "lchmod",
    "chown", "link", "symlink", "truncate", "ftruncate", "utime", "write", "pwrite", "writev", "mknod", "mkfifo",
    "sendfile", "copy_file_range",
}  # fmt: skip
PATH_MUTATES = {
    "write_text",
    "write_bytes",
    "rename",
    "unlink",
    "mkdir",
    "rmdir",
    "chmod",
    "touch",
    "symlink_to",
    "hardlink_to",
}
SHUTIL_MUTATES = {
    "rmtree",
    "move",
    "copy",
    "copy2",
    "copyfile",
    "copytree",
    "copymode",
    "copystat",
    "chown",
    "unpack_archive",
    "make_archive",
}


def python_files(*rooms: str) -> list[Path]:
    """All Python files of the rooms, sorted."""
    return sorted(file for room in rooms for file in (ROOT / room).rglob("*.py"))


def tracked() -> list[Path]:
    """What git tracks or would track (what is new and that it does not ignore), sorted: files, and links to folders."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return sorted(ROOT / name for name in set(listed.stdout.split("\0")) if name and (ROOT / name).exists())


def tracked_files() -> list[Path]:
    """The files of `tracked`."""
    return [path for path in tracked() if path.is_file()]


def where(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str, package: bool = False, top: bool = False) -> list[tuple[int, str]]:
    """(line, dotted name) of every import, relative ones resolved, `import_module("x")` and `__import__("x")` too.
    `from a import b` gives a.b. `top`: only those that run when the module is imported."""
    tree, imported = ast.parse(source), []
    base = module.split(".") if package else module.split(".")[:-1]
    for node in _at_import(tree) if top else ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = base[: len(base) - node.level + 1] if node.level else []
            imported += [
                (node.lineno, ".".join([*start, *filter(None, [node.module]), alias.name])) for alias in node.names
            ]
        elif (
            isinstance(node, ast.Call)
            and _dotted(node.func).split(".")[-1] in ("import_module", "__import__")
            and node.args
        ):
            text = node.args[0]
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                imported.append((node.lineno, text.value))
    return imported


def beyond_walls(source: str, module: str, allowed: set[str] | None, refused: set[str]) -> list[str]:
    """Imports of a refused top-level name, or (with `allowed`) of one that is neither allowed nor in the standard
    library."""
    bad = []
    for line, name in imports(source, module):
        top = name.split(".")[0]
        if top in refused or (allowed is not None and top not in allowed | sys.stdlib_module_names):
            bad.append(f"line {line}: imports {name}")
    return bad


def banned(source: str) -> list[str]:
    """Pickle imports, code from text, unsafe loaders, shells, remote code."""
    tree = ast.parse(source)
    bad = [f"line {line}: imports {name}" for line, name in imports(source, "m") if PICKLES & set(name.split(".")[:1])]
    for line, name, call in calls(tree):
        if name in CALLS:
            bad.append(f"line {line}: calls {name}")
        bad += [f"line {line}: passes {k.arg}" for k in call.keywords if k.arg in KEYWORDS and not _is_false(k.value)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            named = [
                (key.value, value)
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant)
            ]
            bad += [
                f"line {node.lineno}: passes {key}" for key, value in named if key in KEYWORDS and not _is_false(value)
            ]
    return bad


def clocks(source: str) -> list[str]:
    """Reads of the wall clock."""
    return [f"line {line}: calls {name}" for line, name, _ in calls(ast.parse(source)) if name in CLOCKS]


def mutations(source: str) -> list[str]:
    """Calls that change a file system, except through spin_core.store.fs."""
    return [f"line {line}: calls {name}" for line, name, call in calls(ast.parse(source)) if _mutates(name, call)]


def unencoded(source: str) -> list[str]:
    """Text that is read or written, of a file or another process, in the encoding of whoever runs it."""
    found = []
    for line, name, call in calls(ast.parse(source)):
        last, given = name.rpartition(".")[2], {keyword.arg: keyword.value for keyword in call.keywords}
        if last in ("open", "fdopen") and name != "os.open":
            at = 1 if name in ("open", "io.open", "os.fdopen") else 0
            mode = given.get("mode") or next(iter(call.args[at : at + 1]), None)
            text = mode is None or (isinstance(mode, ast.Constant) and "b" not in str(mode.value))
        elif last in ("read_text", "write_text"):
            text = len(call.args) < (1 if last == "read_text" else 2)
        else:
            text = not _is_false(given.get("text", ast.Constant(False)))
        if text and "encoding" not in given:
            found.append(f"line {line}: {name} without an encoding")
    return found


def sizes(source: str, file_lines: int, function_lines: int) -> list[str]:
    """A file or a function (decorators aside) that is longer than allowed."""
    count = len(source.splitlines())
    bad = [f"{count} lines; at most {file_lines}"] if count > file_lines else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            long = (node.end_lineno or node.lineno) - node.lineno + 1
            bad += (
                [f"line {node.lineno}: {node.name} has {long} lines; at most {function_lines}"]
                if long > function_lines
                else []
            )
    return bad


def undocumented(source: str, public: bool) -> list[str]:
    """No module docstring (an empty file needs none); with `public`, top-level functions and classes without one
    too."""
    tree = ast.parse(source)
    bad = ["line 1: the module has no docstring"] if tree.body and not ast.get_docstring(tree) else []
    for node in tree.body if public else ():
        if (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and node.name[0] != "_"
            and not ast.get_docstring(node)
        ):
            bad.append(f"line {node.lineno}: {node.name} has no docstring")
    return bad


def calls(tree: ast.AST) -> Iterator[tuple[int, str, ast.Call]]:
    """(line, dotted name, node) of every call; a name that was imported is given by where it comes from."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {
                a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0] for a in node.names
            }
        elif isinstance(node, ast.ImportFrom):
            known |= {a.asname or a.name: f"{node.module or ''}.{a.name}" for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, _, rest = _dotted(node.func).partition(".")
            yield node.lineno, ".".join(filter(None, [known.get(first, first), rest])), node


def _dotted(node: ast.AST) -> str:
    """a.b.c as text; what is not a name (a call's result, an item) is "?"."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def _at_import(tree: ast.Module) -> Iterator[ast.AST]:
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        typing_only = isinstance(node, ast.If) and _dotted(node.test).split(".")[-1] == "TYPE_CHECKING"
        if not typing_only and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def _is_false(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def _mutates(name: str, call: ast.Call) -> bool:
    head, _, last = name.rpartition(".")
    if head.endswith("store.fs") or head == "fs":
        return False
    if head == "os":
        return last in OS_MUTATES or (last == "open" and _opens_to_write(call))
    if head in ("shutil", "tempfile"):
        return head == "tempfile" or last in SHUTIL_MUTATES
    if last == "open":
        return _mode_writes(call, 1 if head in ("", "io", "builtins", "codecs") else 0)
    if last == "replace" and head:  # Path.replace has one argument, str.replace two, dataclasses.replace keywords
        return len(call.args) == 1 and not call.keywords
    return bool(head) and last in PATH_MUTATES


def _opens_to_write(call: ast.Call) -> bool:
    return any(
        isinstance(node, ast.Attribute | ast.Name)
        and _dotted(node).split(".")[-1] in {"O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND"}
        for part in call.args
        for node in ast.walk(part)
    )


def _mode_writes(call: ast.Call, place: int) -> bool:
    given = [k.value for k in call.keywords if k.arg == "mode"] or call.args[place : place + 1]
    return any(not isinstance(mode, ast.Constant) or bool(set("wax+") & set(str(mode.value))) for mode in given)
