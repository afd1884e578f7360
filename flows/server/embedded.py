"""A Prefect server for the time of one command, where none is configured.

Prefect would start one itself, but only after importing its full server package into this process first: 3 to 4 of
the 9 seconds measured for an empty flow. Here the import happens in the child alone, while the caller checks its
inputs. The runs land in the usual database ($PREFECT_HOME/prefect.db), so `prefect server start` shows them later.
Not a server for other machines: loopback only.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import httpx

from flows import proxies
from spin_core.errors import BadInput, SpinloopError, one_line
from spin_core.runtime.launch import python_path

START_SECONDS = 120
BUSY_SECONDS = 30.0  # a server that was just restarted, or has 40 runs to serve, took over 5 on a busy machine


def answers(url: str, seconds: float = 5) -> bool:
    """Whether a Prefect API is there; one that wants a login is, and one that takes up to `seconds` to answer."""
    try:
        httpx.get(f"{url}/health", timeout=seconds)
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
    return True


def configured_server() -> str | None:
    """The API that Prefect's settings name. Raises BadInput for one that is no URL, for a proxy that cannot be used,
    without which no client begins, and where a login that is not of this server would be sent there."""
    proxies.check()
    try:
        from prefect.settings import PREFECT_API_URL

        url: str | None = PREFECT_API_URL.value()
    except ValueError as error:
        why = one_line(error)
        raise BadInput(f"PREFECT_API_URL or another of Prefect's settings is not valid ({why}); fix it.") from None
    if url:
        from flows.server import login

        login.check(url)
    return url


class EmbeddedServer:
    """Starts at once, is awaited later, and ends by itself with the process that made it, however that ends.

    (Its standard input closes then. Nothing stops it earlier: Prefect sends its last events while the process exits.)
    """

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "flows.server.embedded", str(self.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Its own session: Ctrl-C is for the run, which still has to report its end to the server.
            start_new_session=True,
            env={**os.environ, "PREFECT_SERVER_UI_ENABLED": "false", "PYTHONPATH": python_path()},
        )

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Prefect's settings point to this server inside the block. Raises SpinloopError if it does not come up."""
        from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

        url = f"http://127.0.0.1:{self.port}/api"
        self._await(url)
        # A heartbeat thread costs a sync flow one second at its end, and no automation listens to this server.
        with temporary_settings({PREFECT_API_URL: url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            yield

    def _await(self, url: str) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            if answers(url):
                return
            time.sleep(0.1)
        raise SpinloopError(
            "Prefect's server did not start; `prefect server start` shows why. "
            "If its database was written by a newer Prefect, set PREFECT_HOME to another folder."
        )


def _serve(port: int) -> None:
    import uvicorn
    from prefect.server.api.server import create_app

    server = uvicorn.Server(
        uvicorn.Config(create_app(ephemeral=True), host="127.0.0.1", port=port, log_level="critical")
    )

    def end_with_parent() -> None:
        sys.stdin.read()
        server.should_exit = True
        time.sleep(3)
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()
    # Slurm sends SIGTERM to every process of a job, and the run needs its server to the end; uvicorn would heed it.
    server.capture_signals = nullcontext  # type: ignore[assignment]
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    server.run()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
