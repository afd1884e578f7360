"""What each stage publishes, small: the file names and formats of a real run, so that every kind of artifact is
damaged, cut and lost once.

Made in a process of its own: a process that has loaded parquet and numpy takes four times as long to fork.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from spin_core.store.keys import key_of, payload

ROOT = Path(__file__).parents[3]
TOKENIZER = ROOT / "tests/golden/tokenizer"
FACTS = {"summary": {"loss": 0.5, "steps": 3}, "seconds": 1.25}


@dataclass(frozen=True)
class Step:
    """A stage's key and the files of its output."""

    payload: dict
    files: dict[str, bytes]

    @property
    def stage(self) -> str:
        return self.payload["stage"]

    @cached_property
    def key(self) -> str:
        return key_of(self.payload)


def step(stage: str, files: dict[str, bytes], version: int = 1) -> Step:
    """A step of the stage with some config and inputs."""
    made = payload(stage, version, {stage: {"beta": 0.1}, "seed": 42}, {"model": "a" * 64, "pairs": ["b" * 64]})
    return Step(made, files)


@lru_cache(maxsize=1)
def kinds() -> dict[str, Step]:
    """Stage → a step with the files that the stage publishes."""
    command = [sys.executable, "-m", "tests.faults.store.kinds"]
    made = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)
    return {
        stage: step(stage, {name: bytes.fromhex(data) for name, data in files.items()}) for stage, files in made.items()
    }


def shapes() -> dict[str, Step]:
    """One stage for each number of files and folders: those of one shape are published by the same operations."""
    first: dict[tuple[str, ...], str] = {}
    for stage, made in kinds().items():
        first.setdefault(tuple(sorted(name.rpartition("/")[0] for name in made.files)), stage)
    return {stage: kinds()[stage] for stage in first.values()}


def outputs() -> dict[str, dict[str, bytes]]:
    """Stage → the files that it publishes."""
    return {
        "reformat": _rows() | {"rejects.jsonl": b""},
        "tokenize": _tokens("answer") | {"rejects.jsonl": b"", "prompts/train-0a1b.jsonl": _lines({"prompt": [5, 6]})},
        "sft": _model(2),
        "generate": {"answers.jsonl": _lines(*({"id": str(i), "text": f"a{i}", "token_ids": [i]} for i in range(20)))},
        "gather": _pairs()
        | _tokens("real", "generated")
        | {"quality.json": _json({"train": {"pairs": 3, "empty": 0}})},
        "score": {"logps.parquet": _logps(), "scores.json": _json({"beta": 0.1, "model": "c" * 64})},
        "finetune": _model(3),
        "evaluate": {"metrics.json": _json({"margin": 0.25}), "rows.jsonl": _lines({"id": "1", "margin": 0.25})},
        "harness": {"results.json": _json({"tasks": {}}), "samples/arc_easy.jsonl": _lines({"doc_id": 1})},
        "gate": {"decision.json": _json({"outcome": "better", "go_on": True})},
        "report": {
            "report.html": b"<!doctype html><title>run</title><table></table>\n",
            "report.json": _json({"rows": []}),
        },
    }


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _lines(*values: object) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def _model(seed: int) -> dict[str, bytes]:
    import numpy as np
    from safetensors.numpy import save

    rng = np.random.default_rng(seed)
    weights = {f"model.layers.{i}.weight": rng.standard_normal((8, 16), dtype=np.float32) for i in range(2)}
    return {
        "config.json": _json({"model_type": "llama", "hidden_size": 16}),
        "model.safetensors": save(weights),
        "tokenizer.json": (TOKENIZER / "tokenizer.json").read_bytes()[:3000],
        "chat_template.jinja": b"{{ messages }}\n",
        "metrics.jsonl": _lines({"step": 1, "loss": 0.69}, {"step": 2, "loss": 0.42}),
    }


def _rows() -> dict[str, bytes]:
    from spin_core.data.rows import Row, write_rows

    rows = [Row(str(i), [{"role": "user", "content": f"What is {i} + {i}?"}], str(2 * i)) for i in range(3)]
    return _parquet(lambda path: write_rows(path, rows))


def _pairs() -> dict[str, bytes]:
    from spin_core.data.rows import Pair, write_pairs

    pairs = [Pair(str(i), [{"role": "user", "content": f"q{i}"}], "real", "made up", "stop") for i in range(3)]
    return _parquet(lambda path: write_pairs(path, pairs))


def _tokens(*answers: str) -> dict[str, bytes]:
    from spin_core.data import token_file

    rows = [(str(i), [1, 2, i], *([3, i] for _ in answers)) for i in range(3)]
    with TemporaryDirectory() as folder:
        file = Path(folder) / token_file.FILES["train"]
        token_file.write(file, ("prompt", *answers), rows)
        return {file.name: file.read_bytes()}


def _parquet(write) -> dict[str, bytes]:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "train_prefs-00000-of-00001.parquet"
        write(file)
        return {file.name: file.read_bytes()}


def _logps() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": ["1", "2"], "real": [-3.5, -2.25], "generated": [-1.5, -0.5]}), sink)
    return sink.getvalue().to_pybytes()


if __name__ == "__main__":
    print(json.dumps({stage: {name: data.hex() for name, data in files.items()} for stage, files in outputs().items()}))
