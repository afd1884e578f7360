"""What the text tests share: the golden data and tokenizer, and a way to run a stage into a fresh directory."""

import json
from pathlib import Path

import pytest

from spin_core.job import Job

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture(scope="session")
def golden():
    """Loads a golden JSON file by name."""
    return lambda name: json.loads((GOLDEN / name).read_text())


@pytest.fixture
def tokenizer():
    """The golden tokenizer (zephyr template); fresh, because tests change its template."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(GOLDEN / "tokenizer")


@pytest.fixture
def template():
    """Reads one of the golden chat templates."""
    return lambda name: (GOLDEN / "tokenizer" / "templates" / f"{name}.jinja").read_text()


@pytest.fixture
def job(tmp_path):
    """Makes a Job with a new empty output directory."""

    def make(name: str = "out") -> Job:
        (tmp_path / name).mkdir()
        return Job(tmp_path / name, tmp_path / "scratch")

    return make


@pytest.fixture
def jsonl(tmp_path):
    """Writes objects, one a line, and gives the path."""

    def write(objects: list, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(o) + "\n" for o in objects), encoding="utf-8")
        return path

    return write
