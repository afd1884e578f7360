"""A token in the environment is nowhere afterwards: not in the store, Prefect's database, caches, logs, reports, cards,
nor in what was printed or pushed.

Looked for as it is, in base64 (three alignments, both alphabets), URL-encoded, in hex and in UTF-16. Not looked for in
compressed data: the parquet files of rows and pairs hold the dataset's text, and nothing there reads the
environment.
"""

from __future__ import annotations

import base64
import sqlite3
from math import ceil
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.faults.fault import Fault
from tests.hub.hub_home import Ran, command, environment, new_token
from tests.hub.hub_server import Hub


def forms(secret: str) -> dict[str, bytes]:
    """What the secret may look like, by name. In base64 its first and last character depend on their neighbours; what
    does not is looked for."""
    raw = secret.encode()
    forms = {"raw": raw, "url": quote(secret, safe="").encode(), "hex": raw.hex().encode()}
    forms["url, small"] = (
        quote(secret, safe="").replace("%2B", "%2b").replace("%2F", "%2f").replace("%3D", "%3d").encode()
    )
    forms |= {"HEX": raw.hex().upper().encode(), "utf-16": secret.encode("utf-16-le")}
    for before in range(3):
        text = base64.b64encode(b"\0" * before + raw)
        inner = text[ceil(before * 8 / 6) : (before + len(raw)) * 8 // 6]
        forms[f"base64+{before}"] = inner
        forms[f"base64url+{before}"] = inner.replace(b"+", b"-").replace(b"/", b"_")
    return forms


def hits(secret: str, root: Path, **texts: str) -> list[str]:
    """`place: form` for each form of the secret in a file below `root`, in a file's name, or in one of `texts`."""
    wanted = forms(secret)
    places = [(str(p.relative_to(root)), p.read_bytes() + str(p).encode()) for p in root.rglob("*") if p.is_file()]
    places += [(name, text.encode()) for name, text in texts.items()]
    return [f"{place}: {form}" for place, data in places for form, value in wanted.items() if value in data]


def nowhere(what: str, matches: list[str]) -> None:
    """A trial for each form: none of `hits` is of it."""

    def trial(form: str) -> None:
        assert not [hit for hit in matches if hit.endswith(f": {form}")]

    Fault("S9", what).each(forms("hf_+/=x"), trial)


def held(hub: Hub) -> str:
    """All that the hub was given, but for the headers of requests."""
    commits = [commit for repo in hub.repos.values() for commit in repo.commits.values()]
    texts = [message + data.decode("latin-1") for message, files in commits for data in files.values()]
    return "\n".join([*texts, *hub.requests])


def test_secret_of_a_run_and_a_push_is_nowhere(ran: Ran, hub: Hub):
    """Catches: a token in a record's provenance, a flow run's parameters, a log line, a card, a commit message."""
    hub.tokens[ran.token] = {"acme"}
    arguments = [
        "push",
        ran.run,
        "--to",
        "acme/tiny",
        "--pairs",
        "acme/tiny-pairs",
        "--model",
        "2",
        "--store",
        str(ran.store),
    ]
    done = command(arguments, environment(ran.home, hub.url, ran.token), ran.home)
    assert done.code == 0, done.err
    again = command(arguments, environment(ran.home, hub.url, ran.token), ran.home)
    assert again.out.count("nothing to push") == 2, again
    shown = command(["report", "--store", str(ran.store)], environment(ran.home, hub.url, ran.token), ran.home)
    assert ran.hub.authorised > 4 and hub.authorised > 4, "the token was used"
    seen = {path.relative_to(ran.home).parts[0] for path in ran.home.rglob("*") if path.is_file()}
    assert {"store", "prefect", "hf"} <= seen and list((ran.home / "prefect").glob("prefect.db*"))
    printed = "".join(one.out + one.err for one in (ran.done, done, again, shown))
    matches = hits(ran.token, ran.home, printed=printed, run=held(ran.hub), pushed=held(hub))
    nowhere("a token in the environment of a run and a push: forms of it in files, databases, prints", matches)


@pytest.mark.full
def test_secret_that_the_hub_refuses_is_nowhere(ran: Ran, hub: Hub, tmp_path):
    """Catches: a token in an error that is shown, logged, or kept as the state of a failed flow run."""
    token = new_token()
    env = environment(tmp_path, hub.url, token)
    push = command(["push", "--to", "acme/tiny", "--store", str(ran.store)], env, tmp_path)
    assert push.code == 2 and "does not accept the token of $HF_TOKEN" in push.err, push
    hub.tokens[token] = {"acme"}
    hub.repos |= ran.hub.repos
    hub.infos_left = (
        3  # two splits and the model are looked at before the flow begins; in it the token is no longer good
    )
    run = command(["run", str(ran.profile), "--store", str(tmp_path / "store")], env, tmp_path)
    assert run.code == 2 and "does not accept the token of $HF_TOKEN" in run.err and hub.authorised > 3, run
    database = b"".join(path.read_bytes() for path in (tmp_path / "prefect").glob("prefect.db*"))
    assert b"does not accept the token of" in database, "the failed flow run is in Prefect's database"
    matches = hits(token, tmp_path, run=run.out + run.err, push=push.out + push.err)
    nowhere("a token that the hub refuses: forms of it in files, databases, prints", matches)


@pytest.mark.parametrize("form", forms("hf_+/=x"))
def test_scanner_finds_a_planted_secret(form: str, tmp_path):
    """Catches: a scanner that sees nothing, with which the tests above would always pass."""
    token = new_token()
    written = {
        "raw": token.encode(),
        "url": quote(token, safe="").encode(),
        "url, small": quote(token, safe="").replace("%2B", "%2b").replace("%2F", "%2f").replace("%3D", "%3d").encode(),
        "hex": token.encode().hex().encode(),
        "HEX": token.encode().hex().upper().encode(),
        "utf-16": f"the token {token}".encode("utf-16"),
    }
    for before in range(3):
        around = b"user:pass"[:before] + b"abc" + token.encode() + b" and more"
        written[f"base64+{before}"] = base64.b64encode(around)
        written[f"base64url+{before}"] = base64.urlsafe_b64encode(around)
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert not hits(token, tmp_path)
    (tmp_path / "a" / "b" / "file").write_bytes(b"\x00\xff noise " + written[form] + b" noise \xfe")
    assert any(hit.startswith("a/b/file: ") for hit in hits(token, tmp_path))
    (tmp_path / "a" / "b" / "file").unlink()
    database = sqlite3.connect(tmp_path / "a" / "prefect.db")
    database.execute("create table log (message blob)")
    database.execute("insert into log values (?)", (written[form],))
    database.commit()
    database.close()
    assert any(hit.startswith("a/prefect.db: ") for hit in hits(token, tmp_path))
    assert not hits(new_token(), tmp_path), "another secret"
    assert hits(token, tmp_path / "a" / "b", text=f"token {token}") == ["text: raw"]
