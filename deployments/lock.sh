#!/usr/bin/env bash
# Writes constraints.txt anew: the newest versions that pyproject.toml allows today, of everything that the tests, the image and the
# server's UI tests and the docs site install. `make lock` calls it; then `make test-all` says whether they work, and the file is committed.
# PYTHON  interpreter to resolve with (default python3)
# TORCH   a release to stay at, such as 2.13.0 (default: the newest, of which a machine without a GPU may have no build for CPUs)
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT

"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip --disable-pip-version-check install --quiet ${TORCH:+"torch==$TORCH"} --editable '.[dev,browser,trackers,docs]'

# Names and versions only. A local version (2.13.0+cpu) is of one kind of machine, and so are CUDA's own packages: torch names those itself.
frozen=$("$venv/bin/python" -m pip --disable-pip-version-check freeze --all --exclude-editable)
{
  echo "# The versions that spinloop was tested with. pip installs these with \`--constraint constraints.txt\`; pyproject.toml has the bounds."
  echo "# Made by \`make lock\` with Python $("$venv/bin/python" -c 'import platform; print(platform.python_version())'), $(date -u +%F)."
  grep -E '^[A-Za-z0-9._-]+==' <<<"$frozen" | sed -E 's/\+[A-Za-z0-9.]+$//' | grep -viE '^(pip|spinloop|triton|pytorch-triton|nvidia-.*|cuda-.*)=='
} >constraints.txt
