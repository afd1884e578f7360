"""Prefect's settings for the full session, made before anything imports it: own home, no telemetry, no server but
ours."""

import atexit
import os
import shutil
import socket
import tempfile
from dataclasses import asdict

import pytest
from hypothesis import settings

from tests.faults.flow import no_network

pytest_plugins = ["tests.flows.fixtures"]
no_network.install()
settings.register_profile("spinloop", deadline=None)  # a busy machine is no wrong program
settings.load_profile("spinloop")

for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):  # of `make test`: a make that a test starts is not its child
    os.environ.pop(name, None)

HOME = tempfile.mkdtemp(prefix="spinloop-tests-prefect-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
os.environ["PREFECT_HOME"] = HOME
# tests/flows/migrated.py; the processes of pytest-xdist inherit that of the first.
os.environ.setdefault("SPINLOOP_TEST_DATABASE", f"{HOME}/migrated")
# A `.env` in the checkout (`make server` writes one) may name a database and a login; the environment wins.
os.environ["PREFECT_API_AUTH_STRING"] = ""
os.environ["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = f"sqlite+aiosqlite:///{HOME}/prefect.db"
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["DO_NOT_TRACK"] = "1"
os.environ["PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS"] = "4"  # a test's schedule is seen at once, not in a minute
os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
os.environ["HF_HUB_OFFLINE"] = "1"
# Two threads wait for each other on tensors this small: a tenth of the processor time of tests/stages and training.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["SPINLOOP_STORE"] = "/nonexistent/every-test-names-its-own-store"

with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    PORT = probe.getsockname()[1]
# Where tests/flows/fixtures.py starts `prefect server start`; nothing listens there before.
os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{PORT}/api"
os.environ["PREFECT_SERVER_API_PORT"] = str(PORT)


def pytest_sessionfinish(session) -> None:
    """One of several processes (pytest-xdist) hands what it tried to the one that prints the table."""
    from tests.faults.fault import TRIED

    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["faults"] = [asdict(fault) for fault in TRIED]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    from tests.faults.fault import add

    add(getattr(node, "workeroutput", {}).get("faults", []))


def pytest_terminal_summary(terminalreporter) -> None:
    """The table of the fault battery, and how much of the pages is run, where any of it ran."""
    from tests.faults.fault import LEVEL, TRIED, table

    passed = terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", [])
    if any(report.nodeid.startswith("tests/docs/") for report in passed):
        from tests.docs.counts import lines

        terminalreporter.section("docs")
        for line in lines():
            terminalreporter.write_line(line)

    if TRIED:
        terminalreporter.section(f"faults ({LEVEL})")
        for line in table(TRIED):
            terminalreporter.write_line(line)
