"""What the smoke run must not do, and that a second one in a fresh store ends in the same bytes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml

from tests.faults.fault import Fault
from tests.faults.flow.smoke import PROFILE, Smoke, environment, make_smoke, plant, storage, watched

NETLESS = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


def _netless() -> bool:
    """Whether this user may make a network of nothing but loopback."""
    try:
        return subprocess.run([*NETLESS, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.fixture(scope="module")
def again(profile: Path, tmp_path_factory: pytest.TempPathFactory) -> Smoke:
    """The smoke run once more: another store and folder, pickles where Prefect would keep results, and no network but
    loopback where the machine can do that."""
    place = tmp_path_factory.mktemp("again")
    plant(place / "prefect")
    return make_smoke(profile, place, NETLESS if _netless() else ())


@pytest.mark.full
def test_two_runs_in_fresh_stores_are_the_same_bytes(smoke: Smoke, again: Smoke) -> None:
    """Catches a path, a clock, a process's hash seed or the order of threads in any output."""
    assert len(smoke.steps) > 15 and {step["state"] for step in [*smoke.steps, *again.steps]} == {"ran"}

    def same(step: tuple[str, str]) -> None:
        assert again.digests[step] == smoke.digests[step]

    assert again.digests.keys() == smoke.digests.keys()
    Fault("R27", "the smoke run twice: each step's digest").each(smoke.digests, same)


def test_losses_are_the_golden_ones(smoke: Smoke) -> None:
    """Catches a change of data, order, learning rate, loss or start that two runs of today's code agree on. Of
    finetune's the first alone: policy and opponent are one, and what comes then depends on sampled answers."""
    golden = json.loads((Path(__file__).parent / "golden_losses.json").read_text())
    trees = smoke.store / "spinloop-store-v1" / "trees"
    lines = {
        stage: [json.loads(line)["loss"] for line in (trees / digest / "metrics.jsonl").read_text().splitlines()]
        for (stage, label), digest in smoke.digests.items()
        if (stage, label) in (("sft", "θ_0"), ("finetune", "iter 0"))
    }
    expected = [*golden["sft"], math.log(2)]
    losses = [*lines["sft"], lines["finetune"][0]]
    assert len(losses) == len(expected)
    # One thread, float32; another processor's kernels round otherwise.
    same = partial(math.isclose, rel_tol=1e-4)

    def trial(step: int) -> None:
        assert same(losses[step], expected[step]), (losses[step], expected[step])

    Fault("R27", "the loss of each sft step, and of the first finetune step, is the golden one").each(
        range(len(expected)), trial
    )


@pytest.mark.full
def test_no_process_of_a_run_unpickles_or_reads_prefects_results(smoke: Smoke, again: Smoke, profile, tmp_path) -> None:
    """Catches pickle in any process of a run (Prefect's result store loads what a stored file names), and a result
    that is kept there: of a task, of a finished flow, or the exception of a failed one."""
    home, store = tmp_path / "prefect", tmp_path / "store"
    bad = tmp_path / "bad.yaml"
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": ""}\n')
    bad.write_text(yaml.safe_dump({**PROFILE, "dataset": {"path": str(tmp_path / "rows.jsonl")}}))
    failing = _failing([str(bad), "--store", str(store)], home, tmp_path)
    assert failing.returncode == 2 and "no answer" in failing.stderr, failing.stderr

    def clean(name: str) -> None:
        events, place = {
            "finished": (smoke.events, smoke.home),
            "pickles planted": (again.events, again.home),
            "failed": (watched(home), home),
        }[name]
        kinds = {event["by"].split(" -m ")[-1].split()[0] for event in events if event["what"] == "start"}
        assert {"flows.cli", "flows.server.embedded", "spin_core.runtime.worker"} <= kinds, kinds
        assert not [event for event in events if event["what"] in ("pickle", "open")]
        planted = 8 if name == "pickles planted" else 0
        assert len([path for path in storage(place).rglob("*") if path.is_file()]) == planted
        assert not (place / "marker").exists()

    Fault("S1", "pickles in Prefect's result storage; what is read, written and unpickled there").each(
        ["finished", "pickles planted", "failed"], clean
    )
    counted = Fault("S2", "processes of smoke runs, watched by an audit hook for pickle.find_class")
    seen = [*smoke.events, *again.events]

    def unpickles_nothing(process: int) -> None:
        assert not [event for event in seen if event["pid"] == process and event["what"] == "pickle"]

    counted.each(sorted({event["pid"] for event in seen}), unpickles_nothing)


def _failing(arguments: list[str], home: Path, place: Path) -> subprocess.CompletedProcess[str]:
    home.mkdir()
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", "run", *arguments],
        cwd=place, env=environment(home), capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


def test_planted_pickles_are_live_and_the_hook_sees_them(tmp_path: Path) -> None:
    """Catches plants that nothing would load, and a hook that sees nothing: then the test above would always pass."""
    home = tmp_path / "prefect"
    marker = plant(home)
    code = f"import pickle; pickle.load(open({str(storage(home) / 'spin.pkl')!r}, 'rb'))"
    subprocess.run([sys.executable, "-c", code], env=environment(home), check=True)
    assert marker.exists()
    kinds = {event["what"] for event in watched(home)}
    assert {"start", "open", "pickle"} <= kinds
    code = "import socket; socket.socket(type=socket.SOCK_DGRAM).connect(('192.0.2.1', 9))"
    subprocess.run([sys.executable, "-c", code], env=environment(home), check=False, capture_output=True)
    assert "connect" in {event["what"] for event in watched(home)}


@pytest.mark.full
def test_run_needs_no_network(smoke: Smoke, again: Smoke) -> None:
    """Catches a call home (telemetry, a hub, a package index) of any process of a run, and a run that waits for one."""

    def quiet(run: Smoke) -> None:
        assert not [event for event in run.events if event["what"] in ("connect", "resolve")]

    where = "in a network of loopback only" if _netless() else "watched by an audit hook"
    Fault("S13", f"smoke runs, one of them {where}: no address beyond loopback").each([smoke, again], quiet)


def test_this_session_can_be_kept_off_the_network() -> None:
    """Catches a guard that lets an address beyond loopback through, or keeps loopback or a Unix socket from working."""
    from tests.faults.flow import no_network

    tried = [
        "socket.create_connection(('192.0.2.1', 9), timeout=1)",
        "socket.socket(type=socket.SOCK_DGRAM).connect(('192.0.2.1', 9))",
        "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 9))",
        "socket.socket(socket.AF_INET6).connect(('2001:db8::1', 9))",
        "socket.getaddrinfo('example.org', 443)",
        "urllib.request.urlopen('https://example.org')",
    ]

    def refused(code: str) -> None:
        script = (
            f"import socket, urllib.request; from tests.faults.flow import no_network; no_network.install(); {code}"
        )
        done = subprocess.run([sys.executable, "-c", script], cwd=no_network.ROOT, capture_output=True, text=True)
        assert done.returncode == 1 and no_network.MESSAGE in done.stderr, done.stderr

    Fault("S13", "addresses beyond loopback from a guarded process").each(tried, refused)
    allowed = "s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname()); "
    allowed += "socket.getaddrinfo('localhost', 1); a, b = socket.socketpair(); a.send(b'x')"
    script = f"import socket; from tests.faults.flow import no_network; no_network.install(); {allowed}"
    subprocess.run([sys.executable, "-c", script], cwd=no_network.ROOT, check=True)
    assert no_network.installed(), "tests/conftest.py installs it"
    assert os.environ["HF_HUB_OFFLINE"] == "1"
