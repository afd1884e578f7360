"""A real Postgres for one test: a fresh cluster in a temporary folder, on a loopback port."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.flows.pools.conftest import until
from tests.flows.pools.shipped import free_port

PASSWORD = "a-password-of-the-test"


def binaries() -> Path | None:
    """Postgres's own programs: Debian keeps them out of the PATH."""
    places = [Path(path).parent for path in (shutil.which("initdb"),) if path]
    places += sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name), reverse=True
    )
    return next((folder for folder in places if (folder / "initdb").exists() and (folder / "psql").exists()), None)


class Postgres:
    """Where it is, and queries to it."""

    def __init__(self, programs: Path, port: int):
        self.programs, self.port = programs, port
        self.url = f"postgresql+asyncpg://prefect:{PASSWORD}@127.0.0.1:{port}/postgres"

    def query(self, sql: str) -> str:
        """The rows of an answer, one a line, columns parted by `|`."""
        return self._run("psql", "--no-align", "--tuples-only", "--command", sql).strip()

    def everything(self) -> str:
        """All rows of all tables."""
        return self._run("pg_dump", "--data-only")

    def _run(self, program: str, *words: str) -> str:
        command = [self.programs / program, "--host=127.0.0.1", f"--port={self.port}", "--username=prefect", *words]
        names = {"PGPASSWORD": PASSWORD, "PGDATABASE": "postgres"}
        done = subprocess.run(command, env={**os.environ, **names}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def postgres(programs: Path) -> Iterator[Postgres]:
    """Runs inside the block."""
    # Not pytest's folder: Postgres refuses root, and no other user can enter that one.
    folder = Path(tempfile.mkdtemp(prefix="spinloop-tests-postgres-"))
    who: list[str] = []
    if os.getuid() == 0:
        user = pwd.getpwnam("nobody")
        os.chown(folder, user.pw_uid, user.pw_gid)
        who = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    (folder / "password").write_text(PASSWORD)
    make = [programs / "initdb", "--pgdata", folder / "data", "--username=prefect", "--auth=scram-sha-256", "--no-sync"]
    done = subprocess.run(
        [*who, *make, f"--pwfile={folder / 'password'}"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    server = Postgres(programs, free_port())
    options = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", f"port={server.port}"]
    process = subprocess.Popen(
        [*who, programs / "postgres", "-D", folder / "data", *(word for option in options for word in ("-c", option))],
        cwd=folder,
        stdout=(folder / "log").open("wb"),
        stderr=subprocess.STDOUT,
    )
    try:
        ready = [programs / "pg_isready", "--host=127.0.0.1", f"--port={server.port}", "--quiet"]
        until(lambda: process.poll() is not None or not subprocess.run(ready, check=False).returncode, 30)
        assert process.poll() is None, (folder / "log").read_text()
        yield server
    finally:
        process.terminate()
        process.wait(timeout=20)
        shutil.rmtree(folder)
