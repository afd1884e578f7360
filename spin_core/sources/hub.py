"""Reading from the Hugging Face hub: what a repository holds at which commit, its files, and its refusals, a
sentence each.

Is not: writing to it (`spin_core/report/hub_push.py`), nor a choice of files (`spin_core/sources/resolve.py`). The
client and its cache are huggingface_hub's own; its environment variables say which hub and which token it uses
(HF_ENDPOINT, HF_TOKEN). No token passes through here but to be taken out of a text.

Where the hub cannot be asked now (no network, a proxy that does not let through, too many requests, a broken gateway),
what is fully cached is used: a full commit as it is, a branch or tag as it was when it was last asked for.
`Listing.note` says so; it also says that a branch or tag has moved since then. Where the cache has not all of it, a hub
that has too many requests is waited for (`hub_client.py`).
"""

from __future__ import annotations

import glob
import os
import re
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from spin_core.errors import BadInput, Unreachable, one_line
from spin_core.sources import hub_client

HubKind = Literal["model", "dataset"]
COMMIT = re.compile(r"[0-9a-f]{40}")
REVISION = re.compile(r"(?!.*\.\.)[\w.-]+(/[\w.-]+)*")
TOKEN = re.compile(r"\bhf_\w{6,}")
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
HIDDEN = "(token)"

_moved: dict[tuple[str, HubKind, str, str], str] = {}


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one commit. `why`: they come from the cache, as the hub cannot be asked now, for
    this reason; `busy`: in a while it can."""

    names: list[str]
    commit: str
    why: str = ""
    busy: bool = False
    note: str = ""


def listing(repo: str, kind: HubKind, revision: str) -> Listing:
    """What `repo` holds at a branch, tag or commit (empty: main). Raises BadInput with the remedy."""
    cached = _cached(repo, kind, revision)
    try:
        with hub_client.at_once() if cached else nullcontext():
            info = _info(repo, kind, revision)
    except Exception as error:  # httpx, the hub's own and operating system errors, of three unrelated families
        if cached is None or not unreachable(error):
            raise refusal(repo, kind, revision, error) from None
        return _instead(repo, revision, cached, error)
    if not info.sha:
        raise BadInput(f"{repo}: the hub does not say which commit {revision or 'main'} is; give `{kind}.revision`.")
    note = _remember(repo, kind, revision, info.sha)
    return Listing([file.rfilename for file in info.siblings or []], info.sha, note=note)


def _info(repo: str, kind: HubKind, revision: str) -> Any:
    from huggingface_hub import HfApi

    hub_client.be_patient()
    return HfApi().repo_info(repo, repo_type=kind, revision=revision or None, timeout=20)


def download(repo: str, kind: HubKind, listed: Listing, names: list[str]) -> Path:
    """The folder that has these files of `listed`, in huggingface_hub's cache. Raises BadInput with the remedy."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    how: Any = {"repo_type": kind, "revision": listed.commit, "allow_patterns": [glob.escape(name) for name in names]}
    try:
        # It refuses a cached folder that a cut-off download left with some of the files: less would be other content.
        if listed.why:
            try:
                return Path(snapshot_download(repo, local_files_only=True, **how))
            except LocalEntryNotFoundError:
                if not listed.busy:
                    raise
        hub_client.be_patient()
        return Path(snapshot_download(repo, **how))
    except LocalEntryNotFoundError as error:
        if not listed.why:
            raise refusal(repo, kind, listed.commit, error) from None
        raise Unreachable(
            f"{repo}: there is no such local path, the hub cannot be read ({listed.why}), and its cache has a part of "
            f"commit {listed.commit[:8]} only; {_remedy(listed.why)}, or give the path of a local copy."
        ) from None
    except Exception as error:
        raise refusal(repo, kind, listed.commit, error) from None


def unreachable(error: Exception) -> bool:
    """Whether the hub gave no answer of its own that would be another tomorrow: no network, a proxy that wants a login,
    a time-out, offline mode, too many requests, or a broken gateway."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if isinstance(error, HFValidationError):
        return False
    response = getattr(error, "response", None)
    if not isinstance(error, HfHubHTTPError):
        return True
    return response is not None and (response.status_code >= 500 or response.status_code in (407, 408, 429))


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
    kind_of, why = Unreachable if unreachable(error) else BadInput, describe(error)
    return kind_of(f"{where} the hub cannot be read ({why}); {_remedy(why)}, or give the path of a local copy.")


def _remedy(why: str) -> str:
    if "TooManyRequests" in why:
        return "run again later, set HF_TOKEN (its limit is higher)"
    if "SOCKS" in why or "proxy" in why.lower():
        return "correct HTTPS_PROXY, HTTP_PROXY or ALL_PROXY (a SOCKS proxy needs `pip install 'httpx[socks]'`)"
    if "CERTIFICATE_VERIFY_FAILED" in why:
        return "set SSL_CERT_FILE to the file of the CA that signed its certificate"
    return "go online"


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


def _instead(repo: str, revision: str, cached: Listing, error: Exception) -> Listing:
    """What the cache has, in place of an answer that did not come because of `error`."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    response = getattr(error, "response", None)
    why = f"{response.status_code} {response.reason_phrase}" if response is not None else describe(error)
    if isinstance(error, OfflineModeIsEnabled):
        why = "HF_HUB_OFFLINE"
    name, commit = revision or "main", cached.commit
    used = f"commit {commit[:8]} is used"
    if commit != name:
        used = f"{name} is used as it was when last asked for, commit {commit[:8]}"
    note = f"{repo}: the hub cannot be asked now ({why}); {used}, from its cache."
    return Listing(cached.names, commit, why, hub_client.is_busy(response), note)


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
    return Listing(names, commit)
