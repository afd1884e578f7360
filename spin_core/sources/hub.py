"""Reading from the Hugging Face hub: what a repository holds at which commit, its files, and its refusals, a
sentence each.

Is not: writing to it (`spin_core/report/hub_push.py`), nor a choice of files (`spin_core/sources/resolve.py`). The
client and its cache are huggingface_hub's own; its environment variables say which hub and which token it uses
(HF_ENDPOINT, HF_TOKEN). No token passes through here but to be taken out of a text.

Where the hub cannot be reached, what is fully cached is used: a full commit as it is, a branch or tag as it was when it
was last asked for, which `Listing.note` says; it also says that a branch or tag has moved since then.
"""

from __future__ import annotations

import glob
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from spin_core.errors import BadInput, Unreachable, one_line

HubKind = Literal["model", "dataset"]
COMMIT = re.compile(r"[0-9a-f]{40}")
REVISION = re.compile(r"(?!.*\.\.)[\w.-]+(/[\w.-]+)*")
TOKEN = re.compile(r"\bhf_\w{6,}")
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
HIDDEN = "(token)"

_moved: dict[tuple[str, HubKind, str, str], str] = {}


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one commit. `cached`: they come from the cache, as the hub cannot be reached."""

    names: list[str]
    commit: str
    cached: bool = False
    note: str = ""


def listing(repo: str, kind: HubKind, revision: str) -> Listing:
    """What `repo` holds at a branch, tag or commit (empty: main). Raises BadInput with the remedy."""
    from huggingface_hub import HfApi

    try:
        info: Any = HfApi().repo_info(repo, repo_type=kind, revision=revision or None, timeout=20)
    except Exception as error:  # httpx, the hub's own and operating system errors, of three unrelated families
        cached = _cached(repo, kind, revision) if unreachable(error) else None
        if cached is None:
            raise refusal(repo, kind, revision, error) from None
        return cached
    if not info.sha:
        raise BadInput(f"{repo}: the hub does not say which commit {revision or 'main'} is; give `{kind}.revision`.")
    note = _remember(repo, kind, revision, info.sha)
    return Listing([file.rfilename for file in info.siblings or []], info.sha, note=note)


def download(repo: str, kind: HubKind, listed: Listing, names: list[str]) -> Path:
    """The folder that has these files of `listed`, in huggingface_hub's cache. Raises BadInput with the remedy."""
    from huggingface_hub import snapshot_download

    how: Any = {"repo_type": kind, "revision": listed.commit, "allow_patterns": [glob.escape(name) for name in names]}
    try:
        # It refuses a cached folder that a cut-off download left with some of the files: less would be other content.
        return Path(snapshot_download(repo, local_files_only=listed.cached, **how))
    except Exception as error:
        raise refusal(repo, kind, listed.commit, error) from None


def unreachable(error: Exception) -> bool:
    """Whether the hub gave no answer of its own: no network, a time-out, offline mode, or a broken gateway."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if isinstance(error, HFValidationError):
        return False
    response = getattr(error, "response", None)
    return not isinstance(error, HfHubHTTPError) or (response is not None and response.status_code >= 500)


def refusal(repo: str, kind: HubKind, revision: str, error: Exception) -> BadInput:
    """Why `repo` could not be read, with the remedy and without a token."""
    from huggingface_hub import errors

    where = f"{repo}: there is no such local path, and"
    if bad_token(error):
        return BadInput(f"{where} the hub does not accept the token of {token_place()}; set a valid one, or none.")
    if isinstance(error, errors.GatedRepoError):
        return BadInput(f"{where} the hub's {kind} of this name is gated; accept its terms there and set HF_TOKEN.")
    if isinstance(error, errors.RepositoryNotFoundError):
        return BadInput(
            f"{where} the hub shows no {kind} of this name; check `{kind}.path`, or set HF_TOKEN if private."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return BadInput(f"{where} the hub's {kind} has no revision {revision!r}; check `{kind}.revision`.")
    kind_of = Unreachable if unreachable(error) else BadInput
    return kind_of(f"{where} the hub cannot be read ({describe(error)}); go online or give the path of a local copy.")


def bad_token(error: Exception) -> bool:
    """Whether the hub refused the token itself, which is not the same as showing nothing to it."""
    response = getattr(error, "response", None)
    message = (getattr(response, "headers", None) or {}).get("X-Error-Message", "").lower()
    return getattr(response, "status_code", 0) == 401 and "invalid credentials" in message


def describe(error: BaseException, *secrets: str) -> str:
    """An error's kind and text on one short line, without a token."""
    return masked(one_line(error, 2000, kind=True), *secrets)[:200]


def masked(text: str, *secrets: str) -> str:
    """`text` without `secrets`, without the tokens of the environment, and without what looks like one."""
    given = {one.strip() for one in (*secrets, *(os.environ.get(name, "") for name in TOKEN_VARIABLES))} - {""}
    # Also as a client spells out a header that it cannot send: b'Bearer hf_\xc3\xa9'.
    spelt = {form for one in given for form in (one, ascii(one)[1:-1], repr(one.encode())[2:-1])}
    for secret in sorted(spelt, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return TOKEN.sub(HIDDEN, text)


def token_place() -> str:
    """Where the token comes from that the client sends."""
    named = [name for name in TOKEN_VARIABLES if os.environ.get(name)]
    return f"${named[0]}" if named else "`hf auth login`"


def _ref(repo: str, kind: HubKind, name: str) -> Path:
    """The file of the client's cache that has the commit of a branch or tag."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type=kind) / "refs" / name


def _remember(repo: str, kind: HubKind, revision: str, commit: str) -> str:
    """Write which commit a branch was into the cache's refs/, where the client reads it too: downloads by commit leave
    none there. The note where it is another than last time; each time in this process, not the first only."""
    name = revision or "main"
    if COMMIT.fullmatch(name) or not REVISION.fullmatch(name):
        return ""
    ref = _ref(repo, kind, name)
    with suppress(OSError, ValueError):
        before = ref.read_text(encoding="ascii").strip()
        if before != commit and COMMIT.fullmatch(before):
            _moved[repo, kind, name, commit] = (
                f"{repo}: {name} moved from {before[:8]} to {commit[:8]} since it was last asked for, and {commit[:8]} "
                f"is used; set {kind}.revision to {before} to stay with what was."
            )
    with suppress(OSError):  # a cache that is for reading only
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit, encoding="utf-8")
    return _moved.get((repo, kind, name, commit), "")


def _cached(repo: str, kind: HubKind, revision: str) -> Listing | None:
    """What the cache has of a revision; None unless the client kept the commit's full list of files."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    name = revision or "main"
    if not REVISION.fullmatch(name):
        return None
    try:
        commit = name if COMMIT.fullmatch(name) else _ref(repo, kind, name).read_text(encoding="utf-8").strip()
        if not COMMIT.fullmatch(commit):
            return None
        names = [file.path for file in get_cached_repo_tree(repo, repo_type=kind, revision=commit)]
    except (CachedRepoTreeNotFoundError, OSError, ValueError):
        return None
    note = f"{repo}: the hub cannot be reached; {name} is used as it was when last asked for, commit {commit[:8]}."
    return Listing(names, commit, cached=True, note="" if commit == name else note)
