"""The command line in processes of a user whose only hub is the one on loopback."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.hub.hub_server import Hub

ROOT = Path(__file__).resolve().parents[2]


def new_token() -> str:
    """A random secret, with characters that an address and base64 write otherwise."""
    return f"hf_{secrets.token_hex(9)}+/={secrets.token_hex(8)}"


TOKEN = new_token()  # may write to acme


def environment(home: Path, url: str, token: str = "", **more: str) -> dict[str, str]:
    """Of a user at `home` who has this token (empty: none) and no Prefect server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PREFECT_", "HUGGING"))}
    settings = {
        "HOME": str(home),
        "TMPDIR": str(home),
        "HF_ENDPOINT": url,
        "HF_HOME": str(home / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PYTHONPATH": str(ROOT),
        **({"HF_TOKEN": token} if token else {}),
    }
    return {**kept, **settings, **more}


@dataclass
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


def command(args: list[str], env: dict[str, str], cwd: Path) -> Done:
    """`spinloop` with these arguments."""
    ran = subprocess.run(
        [sys.executable, "-m", "flows.cli", *args], capture_output=True, text=True, env=env, cwd=cwd, timeout=280
    )
    return Done(ran.returncode, ran.stdout, ran.stderr)


EACH = """
import contextlib, io, json, sys
from flows.cli.__main__ import main
ended = []
for args in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(args)
            code = 0
        except SystemExit as stop:
            code = stop.code
    ended.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(ended))
"""


def commands(each: list[list[str]], env: dict[str, str], cwd: Path) -> list[Done]:
    """`spinloop` with each of these arguments, one after the other in one process: a start takes 2 s of a core."""
    ran = subprocess.run(
        [sys.executable, "-c", EACH, json.dumps(each)], capture_output=True, text=True, env=env, cwd=cwd, timeout=280
    )
    assert ran.returncode == 0, ran.stderr
    return [Done(*one) for one in json.loads(ran.stdout)]


@dataclass
class Ran:
    """A finished run: its store and name, the user's home (Prefect's too), what it printed, and the hub it read."""

    store: Path
    run: str
    home: Path
    done: Done
    hub: Hub
    profile: Path
    token: str

    @property
    def folder(self) -> Path:
        return self.store / "spinloop-store-v1" / "runs" / self.run

    def tree(self, stage: str, label: str) -> Path:
        """The output of one of its steps."""
        steps = json.loads((self.folder / "steps.json").read_text())
        digest = next(step["digest"] for step in steps if (step["stage"], step["label"]) == (stage, label))
        return self.store / "spinloop-store-v1" / "trees" / digest
