"""Dockerfile, compose file and shell scripts, by the tools that know their languages; and the Slurm script, run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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


def test_slurm_script_runs_the_profile_on_one_node_and_joins_on_the_others(tmp_path: Path):
    """Catches a profile that every node runs, arguments that lose their spaces, nodes that look for the leader
    elsewhere or meet those of another job."""
    home = tmp_path / "a home"  # with a space
    home.mkdir()
    programs = {
        "scontrol": "#!/bin/sh\nprintf 'node7\\nnode8\\nnode9\\n'\n",
        "srun": SRUN,
        "spinloop": '#!/bin/sh\necho "$SLURM_NODEID $SPINLOOP_LEADER $SLURM_JOB_ID $SPINLOOP_STORE|$*|$#"\n',
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
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    place = f"node7 41234 {home}/.spinloop"
    sets = "--set runtime.compute.nodes=3 --set runtime.compute.processes=8"
    assert done.stdout.splitlines() == [
        f"0 {place}|run my profile.yaml --set name=x {sets}|8",
        f"1 {place}|join|1",
        f"2 {place}|join|1",
    ]
    done = subprocess.run(command[:2], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("usage: sbatch")
