"""A Prefect server of one's own, and what can happen to it while a run is at work."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

from tests.flows import migrated

CUT = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 5\r\nConnection: close\r\n\r\nfault"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """`prefect server start` with its own home. Runs reach it through a door that can answer 500 in its place. A
    context manager."""

    def __init__(self, home: Path):
        self.home, self.port, self.door = home, free_port(), Door()
        migrated.home(home)
        self.url = f"http://127.0.0.1:{self.door.port}/api"
        self._lock: sqlite3.Connection | None = None

    def start(self) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start"],
            cwd=self.home, env={**kept, **self.settings(), "PREFECT_SERVER_API_PORT": str(self.port)},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self.door.to = self.port
        for _ in range(1800):
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/health", timeout=5).close()
                return
            time.sleep(0.1)
        raise AssertionError("the server did not answer in 180 s")

    def settings(self) -> dict[str, str]:
        return {"PREFECT_HOME": str(self.home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}

    def killed(self) -> None:
        """It is gone."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def silent(self) -> None:
        """It takes connections and answers nothing."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def failing(self) -> None:
        """It answers 500 to everything."""
        self.door.close()

    def locked(self) -> None:
        """Somebody else writes to its database, and does not end."""
        self._lock = sqlite3.connect(self.home / "prefect.db", timeout=30)
        self._lock.execute("BEGIN EXCLUSIVE")

    def healed(self) -> None:
        """As it was, whatever happened."""
        if self._lock:
            self._lock.close()
            self._lock = None
        self.door.open()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGCONT)
        else:
            self.start()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.killed()
        self.door.end()


class Door:
    """A port on loopback that leads to another one; closed, it answers 500 to everything, also to who was inside."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port, self.to = self._listening.getsockname()[1], 0
        self._closed = False
        self._inside: set[socket.socket] = set()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._closed = True
        for one in list(self._inside):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def open(self) -> None:
        self._closed = False

    def end(self) -> None:
        self._listening.close()
        self.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                visitor, _ = self._listening.accept()
                threading.Thread(target=self._let_in, args=[visitor], daemon=True).start()

    def _let_in(self, visitor: socket.socket) -> None:
        with visitor, suppress(OSError):
            if self._closed:
                self._refuse(visitor)
                return
            with socket.create_connection(("127.0.0.1", self.to)) as inside:
                self._inside |= {visitor, inside}
                back = threading.Thread(target=_carry, args=[inside, visitor], daemon=True)
                back.start()
                _carry(visitor, inside)
                back.join()
                self._inside -= {visitor, inside}

    def _refuse(self, visitor: socket.socket) -> None:
        visitor.settimeout(2)
        with suppress(TimeoutError):
            visitor.recv(1 << 16)
        visitor.sendall(CUT)


def _carry(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
