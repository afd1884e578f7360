"""Where vLLM is. It cannot share an environment with Prefect (vLLM 0.32 needs FastAPI below 0.137, Prefect 0.139), so
it has an interpreter of its own, which `make vllm-env` builds."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from spin_core.errors import BadInput

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ".venv-vllm"
VLLM_CODE = "import vllm; print(vllm.__version__)"
LM_EVAL_CODE = "from importlib import metadata; print(*[d.version for d in metadata.distributions(name='lm_eval')][:1])"


def place(setting: str) -> Path:
    """The interpreter that `runtime.vllm_python`, the environment or the checkout names, whether or not it is there."""
    named = setting or os.environ.get("SPINLOOP_VLLM_PYTHON", "")
    return Path(named).expanduser() if named else ROOT / FOLDER / "bin" / "python"


def interpreter(setting: str) -> str:
    """That interpreter. Raises BadInput, with the remedy, where there is none. Does not try whether vLLM works."""
    path = place(setting)
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise BadInput(
            f"vllm: there is no interpreter {path}; run `make vllm-env`, or name one that has vLLM in "
            "runtime.vllm_python or $SPINLOOP_VLLM_PYTHON"
        )
    return str(path)


def version(setting: str) -> str:
    """vLLM's version there. Starts it (5 to 20 s). Raises BadInput with the last line of its output."""
    return _output(interpreter(setting), VLLM_CODE).splitlines()[-1]


def lm_eval(setting: str) -> str:
    """lm_eval's version there, or empty (0.1 s). Raises BadInput where there is no interpreter."""
    return _output(interpreter(setting), LM_EVAL_CODE)


def _output(path: str, code: str) -> str:
    try:
        done = subprocess.run(
            [path, "-P", "-c", code], capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=300
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadInput(f"{path}: does not start ({error}); run `make vllm-env` again") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise BadInput(f"{path}: vLLM does not import there ({last}); run `make vllm-env` again")
    return done.stdout.strip()
