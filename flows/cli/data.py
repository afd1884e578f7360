"""`spinloop data`: what a dataset would be read as, before anything is paid for."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows.streams import print_escaped, print_line
from spin_core.config.profile import PROFILES, Config, changed, load_profile, parse
from spin_core.errors import BadInput, StoreError
from spin_core.store.keys import DIGEST
from spin_core.store.opening import open_store

TEXT = (
    "Show what a dataset would be read as: files and splits, layout, columns used and unused, counts, rejects with "
    "examples, lengths and what would be cut, the first rows as the model will see them. Computes no model and writes "
    "nothing to the store."
)


def add_command(within: Any, add: Callable) -> None:
    """Put `data` under the parser `within`."""
    sub = add(within, "data", _data, TEXT)
    sub.add_argument("what", metavar="PROFILE|PATH", help="a profile, or a file, folder or hub id of a dataset")
    sub.add_argument("--model", default="", metavar="MODEL", help="whose tokenizer counts (default: the profile's)")
    sub.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", dest="settings",
        help="change a field, e.g. 'dataset.columns={prompt: question, answer: reply}' (repeatable)",
    )  # fmt: skip
    sub.add_argument("--rows", type=int, default=3, metavar="N", help="how many of the first rows to show (default: 3)")
    sub.add_argument("--rejects", default="", metavar="FILE", help="write every reject with its place, as JSON lines")
    sub.add_argument("--html", default="", metavar="FILE", help="write the same as a page, too")
    sub.add_argument("--json", action="store_true", help="one line of JSON on standard output")


def _data(args: argparse.Namespace) -> None:
    config, base_dir = _config(args)
    known = is_profile(args.what) or bool(args.model)
    if DIGEST.fullmatch(config.model.path):
        tree = open_store(args.store, create=False, read_only=True, runs=False).input_tree(config.model.path)
        config = config.model_copy(update={"model": config.model.model_copy(update={"path": str(tree)})})
    from flows import live
    from spin_core.preview import text
    from spin_core.preview.look import look
    from tasks.runner.progress import Progress

    progress = Progress(live.view())
    files = {name: Path(given).expanduser() for name in ("rejects", "html") if (given := getattr(args, name))}
    try:
        made = look(config, base_dir, args.what, max(0, args.rows), progress, known, files.get("rejects"))
        progress.close()
        if args.html:
            from spin_core.report import data_page

            page = data_page.page(asdict(made), text.sentence(made), text.cuts(made))
            files["html"].write_text(page, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{error.filename}: cannot be written ({error.strerror}); name another file.") from None
    if args.json:
        print_line(json.dumps(asdict(made)))
    else:
        print_escaped(text.text(made))
        if args.html:
            print_escaped(f"\nPage: {files['html'].resolve()}")
    if made.failures:
        for failure in made.failures[1:]:
            print_escaped(f"spinloop: {failure}", file=sys.stderr)
        raise BadInput(made.failures[0])


def is_profile(what: str) -> bool:
    """Whether this names a profile, not data."""
    return what.endswith((".yaml", ".yml")) or (PROFILES / f"{what}.yaml").is_file()


def _config(args: argparse.Namespace) -> tuple[Config, Path]:
    """The profile; of a path one that has nothing but it. Raises BadInput."""
    model = [f"model.path={json.dumps(args.model)}", "model.revision="] if args.model else []
    if is_profile(args.what):
        return load_profile(args.what, [*args.settings, *model])
    data = {"name": "data", "model": {"path": "none"}, "dataset": {"path": args.what}}
    return parse(changed(data, [*args.settings, *model]), args.what), Path.cwd()
