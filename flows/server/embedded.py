"""A Prefect server for the time of one command, where none is configured.

Prefect would start one itself, but only after importing its full server package into this process first: 3 to 4 of
the 9 seconds measured for an empty flow. Here the import happens in the child alone, while the caller checks its
inputs. The runs land in the usual database ($PREFECT_HOME/prefect.db), so `prefect server start` shows them later; of
the user's other settings it has none. Not a server for other machines: loopback only.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import httpx

from flows.server import settings
from spin_core.errors import SpinloopError
from spin_core.runtime.launch import UTF8, python_path
from spin_core.store.locks import locked

START_SECONDS = 120
BUSY_SECONDS = 30.0  # a server that was just restarted, or has 40 runs to serve, took over 5 on a busy machine
LAST_LINES = 5


def answers(url: str, seconds: float = 5) -> bool:
    """Whether a Prefect API is there; one that wants a login is, and one that takes up to `seconds` to answer."""
    try:
        httpx.get(f"{url}/health", timeout=seconds)
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
    return True


def check_answers(url: str) -> None:
    """Raise SpinloopError where no server answers at `url`, which Prefect's settings name."""
    if not answers(url, BUSY_SECONDS):
        raise SpinloopError(
            f"PREFECT_API_URL {url}: no Prefect server answers there; start it (`make server`), or unset the variable "
            "(it may be in .env)."
        )


class EmbeddedServer:
    """Starts at once, is awaited later, and ends by itself with the process that made it, however that ends.

    (Its standard input closes then. Nothing stops it earlier: Prefect sends its last events while the process exits.)
    """

    def __init__(self) -> None:
        """Raises BadInput for settings that cannot be read, and where Prefect's home cannot be written."""
        settings.read()
        self.home = settings.home()
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        with socket.socket() as listener:  # handed on open: between two others it could be somebody else's
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "flows.server.embedded", str(listener.fileno()), str(self.home)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                pass_fds=[listener.fileno()],
                # Its own session: Ctrl-C is for the run, which still has to report its end to the server.
                start_new_session=True,
                cwd=settings.HERE,
                env={**settings.own_server(self.home), **UTF8, "PYTHONPATH": python_path()},
            )
        self._reader = threading.Thread(target=self._keep_last, daemon=True)
        self._reader.start()

    def _keep_last(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            if not line[0].isspace() and "Traceback" not in line:  # what was raised, not where
                self.last.append(line.rstrip())

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Prefect's settings point to this server inside the block. Raises SpinloopError if it does not come up."""
        url = f"http://127.0.0.1:{self.port}/api"
        self._await(url)
        with settings.own(url):
            yield

    def _await(self, url: str) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            if answers(url):
                return
            time.sleep(0.1)
        if self.process.poll() is not None:
            self._reader.join(timeout=1)
        raise SpinloopError(
            f"The run's own Prefect server did not start. Its database is {self.home / 'prefect.db'}; if that is "
            "damaged, or was written by a newer Prefect, set PREFECT_HOME to another folder. Its last lines:"
            + "".join(f"\n  | {line}" for line in self.last or ["(none)"])
        )


def serving(url: str | None) -> AbstractContextManager[None]:
    """The server of a command's runs, entered when it is needed: the one at `url`, which must answer (SpinloopError),
    or else one of this process, whose start begins now: it takes 4 s of the first 5."""
    if url:
        check_answers(url)
        return nullcontext()
    return EmbeddedServer().ready()


def _serve(listener: socket.socket, home: Path) -> None:
    import uvicorn
    from prefect.server.api.server import create_app

    class Server(uvicorn.Server):
        """Starts while no other server of this home does: two that make its database at once both fail."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            with locked(home / "spinloop-start.lock"):
                await super().startup(sockets)

    server = Server(uvicorn.Config(create_app(ephemeral=True), log_level="error"))

    def end_with_parent() -> None:
        sys.stdin.read()
        server.should_exit = True
        time.sleep(3)
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()
    # Slurm sends SIGTERM to every process of a job, and the run needs its server to the end; uvicorn would heed it.
    server.capture_signals = nullcontext  # type: ignore[assignment]
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    server.run(sockets=[listener])


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]))
