"""`spinloop push`: a run's model with its card, and the pairs that it was trained on, to the Hugging Face hub.

What goes there is verified against the store first. The token is the environment's or a Prefect Secret block's; it is
no argument, and nothing that is printed, logged or uploaded has it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from flows import live
from flows.streams import print_escaped
from spin_core.data.rows import FILES
from spin_core.errors import BadInput
from spin_core.job import Entry
from spin_core.report import hub_push, model_card
from spin_core.report.hub_push import Files, Target
from spin_core.report.run_card import full_card, pairs_card, place
from spin_core.report.run_facts import RunFacts, read_run
from spin_core.store.opening import open_store
from tasks.runner.progress import Progress


def add_command(within: Any, add: Callable) -> None:
    """Put `push` under the parser `within`."""
    sub = add(within, "push", _push, "Upload a run's model, its card and its pairs to the Hugging Face hub.")
    sub.add_argument("run", nargs="?", default="", help="name of a run (default: the latest)")
    sub.add_argument("--to", required=True, metavar="ORG/NAME", help="the model's repository, made where it is missing")
    sub.add_argument(
        "--model", default="best", metavar="MODEL",
        help="best (of the last gate; without gates the last), last, or θ_2 (or 2) for that of iteration 2; a run that "
        "did not end has neither best nor last",
    )  # fmt: skip
    sub.add_argument(
        "--pairs", default="", metavar="ORG/NAME", help="also push the pairs it was trained on, as a dataset"
    )
    sub.add_argument(
        "--revision", default="", metavar="BRANCH", help="branch, made where it is missing (default: main)"
    )
    sub.add_argument("--private", action="store_true", help="make the repositories private; refuses public ones")
    sub.add_argument("--dry-run", action="store_true", help="only say what would be uploaded; asks the hub nothing")
    sub.add_argument(
        "--token-block", default="", metavar="NAME",
        help="a Prefect Secret block that has the token (default: $HF_TOKEN, else that of `hf auth login`)",
    )  # fmt: skip


def _push(args: argparse.Namespace) -> None:
    store = open_store(args.store, create=False, read_only=True)
    store.report = Progress(live.view())
    to = Target(args.to, "model", args.revision, args.private)
    hub_push.check(to, "--to")
    if args.pairs:
        hub_push.check(Target(args.pairs, "dataset"), "--pairs")
    with store.using():
        run = read_run(store, args.run)
        k = run.choose(args.model)
        # The model's tree as it is in the store, but with the run's card.
        tree = {**_tree(run, run.models[k]), model_card.FILE: full_card(run, k, to.repo).encode()}
        pushes: list[tuple[str, str, str, Files]] = [(to.repo, "model", f"θ_{k}", tree)]
        if args.pairs:
            pushes.append((args.pairs, "dataset", f"pairs of θ_{k}", _pair_files(run, k, args.pairs, to.repo)))
        if args.dry_run:
            for repo, _, what, files in pushes:
                print_escaped(f"{repo}: {what} of {run.name} would be uploaded:")
                for name, data in sorted(files.items()):
                    size = len(data) if isinstance(data, bytes) else data.stat().st_size
                    print_escaped(f"  {size:>13,}  {name}")
            print_escaped(
                f"{to.repo}: other weights and settings (.json, .txt, .model, …) at its top would be deleted."
            )
            return
        token, where = _token(args.token_block)
        for repo, kind, what, files in pushes:
            both = args.pairs == args.to
            target = Target(repo, kind, args.revision, args.private, token, where, both)  # type: ignore[arg-type]
            done = hub_push.push(target, files, f"{run.name}: {what}", _lineage(run, k), print_escaped)
            if done.changed:
                print_escaped(f"{repo}: {what} of {run.name} is there, commit {done.commit[:8]}: {done.url}")
            else:
                print_escaped(
                    f"{repo}: nothing to push, {what} of {run.name} is there already (commit {done.commit[:8]})."
                )


def _pair_files(run: RunFacts, k: int, repo: str, model: str) -> Files:
    """The parquet files of every iteration before θ_k, imported ones too, and their card."""
    pairs = {t: step for t, step in run.pairs.items() if t < k}
    if not pairs:
        raise BadInput(f"{run.name}: θ_{k} was trained on no pairs; leave --pairs out, or name another --model.")
    files: dict[str, Path | bytes] = {}
    for t, step in pairs.items():
        tree = _tree(run, step)
        files |= {place(t, name): tree[name] for name in FILES.values() if name in tree}
    return {**files, model_card.FILE: pairs_card(run, pairs, repo, model).encode()}


def _tree(run: RunFacts, step: Entry) -> dict[str, Path | bytes]:
    """The files of a step's output, hashed just now. Raises BadInput where they are not what was published."""
    record = run.store.lookup(step.stage, step.key)
    if record is None or record.digest != step.digest:
        raise BadInput(
            f"{run.name}: {step.stage} {step.label} is not whole in the store any more; run its profile again."
        )
    tree = run.store.input_tree(record.digest)
    return {file["path"]: tree / file["path"] for file in record.files}


def _lineage(run: RunFacts, k: int) -> str:
    """The commit's description: the digests of the models and pairs up to θ_k."""
    lines = [f"θ_{i}: {step.digest}" for i, step in run.models.items() if i <= k]
    lines += [f"pairs {t}: {step.digest}" for t, step in run.pairs.items() if t < k]
    return "\n".join(["Pushed by spinloop. Content digests:", *lines])


def _token(block: str) -> tuple[str, str]:
    """(token, where it comes from); empty without a block, where huggingface_hub finds its own."""
    if not block:
        return "", ""
    from flows.server.embedded import EmbeddedServer
    from flows.server.settings import configured_server

    configured = configured_server()
    from prefect.blocks.system import Secret

    with nullcontext() if configured else EmbeddedServer().ready():
        try:
            token = Secret.load(block).get()  # type: ignore[union-attr]
        except ValueError:  # what Prefect says of it names the server, not the remedy
            raise BadInput(
                f"--token-block {block}: Prefect has no Secret block of this name; save one in its UI (Blocks, Secret)."
            ) from None
    if not isinstance(token, str) or not token.strip():
        raise BadInput(f"--token-block {block}: this Secret block holds no text; save the token in it.")
    return token.strip(), f"the Secret block {block}"
