"""Another machine, as far as a store can see: a process with a cache folder of its own.

python -m tests.faults.s3.machine URL compute STEP.json     one line of JSON: digest, whether it ran, notes
python -m tests.faults.s3.machine URL meet STEP.json        the same, and waits for a line before it publishes
python -m tests.faults.s3.machine URL hold STEP.json        the same, and stays until it is given a line
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.faults.store.battery import FACTS, ROOT, write_output

SEED = 7


def contents(sizes: dict[str, int], salt: int = 0) -> dict[str, bytes]:
    """File name → bytes that no other file has."""
    import random

    return {name: random.Random(f"{SEED} {salt} {name}").randbytes(size) for name, size in sizes.items()}


def started(url: str, cache: Path, what: str, step: dict, **env: str) -> subprocess.Popen:
    """A machine at work. `step`: payload, sizes (file → bytes), salt."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.s3.machine", url, what, json.dumps(step)],
        cwd=ROOT,
        env={**os.environ, "SPINLOOP_CACHE": str(cache), **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answer_of(process: subprocess.Popen, given: str | None = None) -> dict:
    """What it printed once it ended."""
    out, err = process.communicate(given, timeout=120)
    assert process.returncode == 0, err[-2000:]
    return json.loads(out.splitlines()[-1])


@contextmanager
def quiet() -> Iterator[None]:
    """A bucket that is there already is no failure."""
    with suppress(FileExistsError):
        yield


def main(url: str, what: str, step: dict) -> None:
    """Look up, and on a miss compute and publish, as a task does."""
    from spin_core.store.keys import key_of
    from spin_core.store.opening import open_store

    store = open_store(url)
    key = key_of(step["payload"])
    record, ran = store.lookup(step["payload"]["stage"], key), False
    if record is None:
        ran = True
        store.check_writable()
        tree = store.new_tree()
        write_output(tree, contents(step["sizes"], step["salt"]))
        if what == "meet":
            print("ready", flush=True)
            sys.stdin.readline()
        record = store.publish(step["payload"], tree, FACTS)
    if what == "hold":
        print("held", flush=True)
        sys.stdin.readline()
    files = {entry["path"]: (record.path / entry["path"]).read_bytes() for entry in record.files}
    right = any(files == contents(step["sizes"], salt) for salt in (step["salt"], *step.get("or", ())))
    print(json.dumps({"digest": record.digest, "ran": ran, "right": right, "notes": store.notes}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
