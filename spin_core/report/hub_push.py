"""Writing to the Hugging Face hub: make a repository hold some files, in one commit or, where it has them, in none.

Is not: the choice of what is pushed (`flows/cli/push.py`). A file of the repository that is not given stays as it is,
but for the weights and settings of a former model: beside the new ones they would be read as part of it. The token is
given or the client's own ($HF_TOKEN, `hf auth login`); no message shows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from spin_core.errors import BadInput, SpinloopError
from spin_core.sources import hub, hub_client
from spin_core.sources.folders import SETTINGS, WEIGHTS

REPO = re.compile(r"[\w.-]+/[\w.-]+")
READ = {"model": SETTINGS + WEIGHTS, "dataset": ()}  # what is read beside the files that are pushed
KEPT = ("readme*", "licen[cs]e*", "notice*", "requirements*")  # documents, whatever their ending
OTHER: dict[hub.HubKind, hub.HubKind] = {"model": "dataset", "dataset": "model"}

Files = Mapping[str, Path | bytes]
"""Path in the repository → the file or the bytes it is to have."""


@dataclass(frozen=True)
class Target:
    """Where to. `revision`: a branch, made where it is missing (empty: main). `place`: where the token comes from, in
    words. `both`: a repository of the other kind may have the same name, because this push makes it."""

    repo: str
    kind: hub.HubKind
    revision: str = ""
    private: bool = False
    token: str = ""
    place: str = ""
    both: bool = False


@dataclass(frozen=True)
class Pushed:
    """What came of it: the commit that the branch is at, and whether this push made it (not where it had all files)."""

    commit: str
    url: str
    changed: bool


def check(target: Target, field: str) -> None:
    """Raise BadInput unless `target.repo` is a hub id; `field` begins the sentence."""
    if not REPO.fullmatch(target.repo) or ".." in target.repo or "--" in target.repo:
        raise BadInput(f"{field} {target.repo}: no hub id; give org/name, without a host or a kind before it.")
    if target.revision and not hub.REVISION.fullmatch(target.revision):
        raise BadInput(f"--revision {target.revision}: no name of a branch; give one such as main or v2.")


def push(target: Target, files: Files, title: str, text: str, say: Callable[[str], None]) -> Pushed:
    """Make the branch hold `files`; `title` and `text` are the commit's message, `say` gets a line before an upload.

    Raises BadInput or SpinloopError, one sentence with the remedy.
    """
    try:
        return _push(target, files, title, text, say)
    except SpinloopError:
        raise
    except Exception as error:  # httpx, the hub's own, xet's and operating system errors, of unrelated families
        raise _refusal(target, error) from None


def _push(target: Target, files: Files, title: str, text: str, say: Callable[[str], None]) -> Pushed:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
    from huggingface_hub.utils import logging

    if not target.token and not get_token():
        raise BadInput(
            "There is no token to write to the hub with; set HF_TOKEN, run `hf auth login`, or name a Prefect Secret "
            "block with --token-block."
        )
    hub_client.be_patient()
    api = HfApi(token=target.token or None)
    _make_repo(api, target)
    where: dict[str, Any] = {"repo_id": target.repo, "repo_type": target.kind}
    branch = target.revision or "main"
    if branch != "main":
        api.create_branch(**where, branch=branch, exist_ok=True)
    head = api.repo_info(**where, revision=branch).sha
    there = _names_there(api, where, head or branch)
    stale = [name for name in there if name not in files and _is_read(name, target.kind)]
    size = sum(len(data) if isinstance(data, bytes) else data.stat().st_size for data in files.values())
    say(f"{target.repo}: {len(files)} files, {size / 1e6:,.1f} MB; what the hub has already is not sent again")
    if stale:
        gone = f"Deleted, as this {target.kind} has no such files: {', '.join(stale)}"
        say(f"{target.repo}: {gone[0].lower()}{gone[1:]}")
        text = f"{text}\n{gone}"
    adds = [CommitOperationAdd(name, data if isinstance(data, bytes) else str(data)) for name, data in files.items()]
    drops = [CommitOperationDelete(name) for name in stale]
    logging.set_verbosity_error()  # "No files have been modified": the caller says so too
    made = api.create_commit(  # of unchanged files it makes no commit, and gives the one that is there
        **where, operations=[*adds, *drops], commit_message=title, commit_description=text, revision=branch,
        parent_commit=head,
    )  # fmt: skip
    url = f"{api.endpoint}/{'datasets/' * (target.kind == 'dataset')}{target.repo}"
    return Pushed(made.oid, url, made.oid != head)


def _is_read(name: str, kind: hub.HubKind) -> bool:
    """Whether a file would be read as part of what is pushed, and is no document. At the top only."""
    is_document = any(fnmatch(name.lower(), pattern) for pattern in KEPT)
    return "/" not in name and not is_document and any(fnmatch(name, pattern) for pattern in READ[kind])


def _make_repo(api: Any, target: Target) -> None:
    """The repository, made where it is missing. Raises BadInput where that cannot be what is meant."""
    if not api.repo_exists(target.repo, repo_type=target.kind):
        other = OTHER[target.kind]
        if not target.both and api.repo_exists(target.repo, repo_type=other):
            raise BadInput(
                f"{target.repo}: the hub has a {other} of this name and no {target.kind}; give another name, or make "
                f"the {target.kind} repository there first if it is to have the same."
            )
        api.create_repo(target.repo, repo_type=target.kind, private=target.private or None, exist_ok=True)
    if target.private and not api.repo_info(target.repo, repo_type=target.kind).private:
        raise BadInput(
            f"{target.repo}: this repository is public; make it private in its settings on the hub, or leave "
            "--private out."
        )


def _names_there(api: Any, where: dict[str, Any], commit: str) -> list[str]:
    """The files that the repository has at a commit."""
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return sorted(api.list_repo_files(**where, revision=commit))
    except EntryNotFoundError:  # a repository without any file
        return []


def _refusal(target: Target, error: Exception) -> SpinloopError:
    """Why the push failed, with the remedy and without the token."""
    cause = _answer(error)
    status = getattr(getattr(cause, "response", None), "status_code", 0)
    place = target.place or hub.token_place()
    if hub.bad_token(cause):
        return BadInput(f"{target.repo}: the hub does not accept the token of {place}; set a valid one.")
    if status in (401, 403):
        return BadInput(
            f"{target.repo}: the token of {place} may not write there; give it write access, or name a repository of "
            "your own."
        )
    if status == 404:
        return BadInput(f"{target.repo}: the hub shows no such {target.kind} to the token of {place}; check the name.")
    if status in (409, 412):
        return SpinloopError(f"{target.repo}: somebody else changed it during the push; look there and push again.")
    why = hub.describe(cause, target.token)
    if hub.unreachable(cause) and not isinstance(cause, ValueError):
        return SpinloopError(
            f"{target.repo}: the hub cannot be reached ({why}); the run stays in the store, so push again later."
        )
    return SpinloopError(f"{target.repo}: the push failed ({why}); look there, and push again.")


def _answer(error: BaseException) -> Exception:
    """Of an error and its causes the one that holds the hub's answer, else the first."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, Exception) and getattr(seen, "response", None) is not None:
            return seen
        if isinstance(seen, hub_client.TooManyRequests):
            return seen
        seen = seen.__cause__
    assert isinstance(error, Exception)
    return error
