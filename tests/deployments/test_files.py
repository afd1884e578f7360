"""Dockerfile, compose file and shell scripts, by the tools that know their languages; and the Slurm script, run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from tests.deployments.rendered import ROOT

DEPLOYMENTS = ROOT / "deployments"
BIN = Path(sys.executable).parent


def tool(name: str) -> str:
    """A tool of the environment that runs the tests; skips by name where it is not there."""
    if not (BIN / name).is_file():
        pytest.skip(f"{name} is not in this environment (pip install -e '.[dev]')")
    return str(BIN / name)


def accepted(*command: object) -> None:
    done = subprocess.run([str(one) for one in command], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_file_is_of_composes_schema():
    """Catches a key that docker compose does not have, and one at the wrong depth."""
    check_jsonschema, jsonschema = pytest.importorskip("check_jsonschema"), pytest.importorskip("jsonschema")
    file = Path(check_jsonschema.__file__).parent / "builtin_schemas/vendor/compose-spec.json"
    schema = json.loads(file.read_text())
    taken = jsonschema.validators.validator_for(schema)(schema)
    text = (DEPLOYMENTS / "compose.yaml").read_text()
    assert not [error.message for error in taken.iter_errors(yaml.safe_load(text))]
    assert list(taken.iter_errors(yaml.safe_load(text.replace("depends_on:", "needs:"))))


def test_dockerfile_has_no_known_mistake():
    """Catches an instruction that does not parse, a shell mistake in a RUN, a user that runAsNonRoot refuses."""
    accepted(tool("hadolint"), DEPLOYMENTS / "Dockerfile")


def test_shell_scripts_have_no_known_mistake():
    """Catches an unquoted path and what only some shells know."""
    accepted(tool("shellcheck"), *sorted(DEPLOYMENTS.glob("*.sh")), *sorted(DEPLOYMENTS.glob("*.sbatch")))


SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for node in 0 1 2; do SLURM_NODEID=$node "$@" || exit; done
"""


AT_ONCE = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for node in 1 2 0; do SLURM_NODEID=$node "$@" & done
wait $!
"""


def slurm(home: Path, spinloop: str, srun: str = SRUN) -> subprocess.Popen:
    """The script in a job of three nodes, with stand-ins for Slurm's commands and this one for spinloop."""
    home.mkdir(exist_ok=True)
    programs = {
        "scontrol": "#!/bin/sh\n[ $1 = show ] || exec echo scontrol $@\nprintf 'node7\\nnode8\\nnode9\\n'\n",
        "srun": srun,
        "spinloop": f"#!/bin/sh\n{spinloop}\n",
    }
    for name, text in programs.items():
        (home / name).write_text(text)
        (home / name).chmod(0o755)
    env = {
        "PATH": f"{home}:{os.defpath}", "SLURM_SUBMIT_DIR": str(home), "SPINLOOP_BIN": str(home),
        "SLURM_JOB_NODELIST": "node[7-9]", "SLURM_JOB_NUM_NODES": "3", "SLURM_JOB_ID": "41234",
        "SLURM_GPUS_ON_NODE": "8",
    }  # fmt: skip
    command = ["bash", str(DEPLOYMENTS / "slurm.sbatch"), "my profile.yaml", "--set", "name=x"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def test_slurm_script_runs_the_profile_on_one_node_and_joins_on_the_others(tmp_path: Path):
    """Catches a profile that every node runs, arguments that lose their spaces, nodes that look for the leader
    elsewhere or meet those of another job."""
    home = tmp_path / "a home"  # with a space
    job = slurm(home, 'echo "$SLURM_NODEID $SPINLOOP_LEADER $SLURM_JOB_ID $SPINLOOP_STORE|$*|$#"')
    out, err = job.communicate(timeout=30)
    assert job.returncode == 0, err
    place = f"node7 41234 {home}/.spinloop"
    sets = "--set runtime.compute.nodes=3 --set runtime.compute.processes=8"
    assert out.splitlines() == [
        f"0 {place}|run my profile.yaml --set name=x {sets}|8",
        f"1 {place}|join|1",
        f"2 {place}|join|1",
    ]
    command = ["bash", str(DEPLOYMENTS / "slurm.sbatch")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("usage: sbatch")


@pytest.mark.parametrize(("code", "seconds", "again"), [(75, 900, True), (75, 0, False), (1, 900, False)])
def test_slurm_queues_a_job_again_whose_time_was_up(tmp_path: Path, code: int, seconds: int, again: bool):
    """Catches a job that Slurm ends by SIGTERM, which every process of it gets, and that is then over; shells that die
    of it before the run has written its checkpoint; and a run with bad input, or one whose time is too short for
    a step, that is queued again for ever."""
    spinloop = (
        f'mark() {{ touch "{tmp_path}/$1-$SLURM_NODEID"; }}\n'
        "[ $1 = join ] && { mark begun; sleep 1; mark joined; exit; }\n"
        f"trap 'sleep 0.3; echo checkpoint; exit {code}' TERM; mark begun; while :; do sleep 0.05; done"
    )
    job = slurm(tmp_path / "home", spinloop, AT_ONCE.replace("SLURM_NODEID", f"SECONDS={seconds} SLURM_NODEID"))
    while len(list(tmp_path.glob("begun-*"))) < 3:
        time.sleep(0.01)
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ProcessLookupError):
            words = (process / "environ").read_bytes().split(b"\0")
            if os.getpgid(int(process.name)) == job.pid and any(word.startswith(b"SLURM_NODEID=") for word in words):
                os.kill(int(process.name), signal.SIGTERM)
    out, err = job.communicate(timeout=30)
    assert job.returncode == code, err
    assert out.splitlines() == ["checkpoint", *["scontrol requeue 41234"] * again]
    assert len(list(tmp_path.glob("joined-*"))) == 2
