"""Hub ids against the real huggingface_hub client and a hub on loopback that answers as the public one does."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = b'{"question": "q", "answer": "a"}\n'
REPOS = {
    "models/acme/good": {
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "onnx/model.safetensors": b"other",
        "README.md": b"#",
    },
    "models/acme/pickled": {"config.json": b"{}", "pytorch_model.bin": b"x"},
    "models/acme/fp8": {
        "config.json": b'{"quantization_config": {"quant_method": "fp8"}}',
        "model.safetensors": b"weights",
    },
    "models/acme/code": {"config.json": b'{"auto_map": {}}', "model.safetensors": b"weights"},
    "datasets/acme/rows": {"data/train-00000-of-00001.jsonl": ROWS, "data/test-00000-of-00001.jsonl": ROWS * 2},
    "datasets/acme/pairs": {f"iter1/{split}-00000-of-00001.parquet": b"PAR1" for split in ("train", "test")},
    "datasets/acme/configs": {"main/train.jsonl": ROWS, "socratic/train.jsonl": ROWS * 3},
}


class Hub(BaseHTTPRequestHandler):
    """`/api/{kind}/{repo}[/revision/{rev} or /tree/{commit}]` and `[/datasets]/{repo}/resolve/{commit}/{file}`."""

    requests: ClassVar[list[str]] = []

    def do_GET(self):
        Hub.requests.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0].strip("/")
        if path.startswith("api/"):
            repo, _, revision = path.removeprefix("api/").replace("/tree/", "/revision/").partition("/revision/")
            if repo not in REPOS:
                return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            if revision not in ("", "main", COMMIT):
                return self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            if "/tree/" in path:
                files = [{"type": "file", "path": n, "size": len(d), "oid": "0" * 40} for n, d in REPOS[repo].items()]
                return self.reply(200, json.dumps(files).encode(), {"Content-Type": "application/json"})
            names = [{"rfilename": name} for name in REPOS[repo]]
            answer = {"id": repo.partition("/")[2], "sha": COMMIT, "siblings": names, "private": False, "tags": []}
            return self.reply(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})
        repo, _, rest = path.partition("/resolve/")
        data = REPOS[repo if repo.startswith("datasets/") else f"models/{repo}"][rest.partition("/")[2]]
        self.reply(200, data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def reply(self, status, data, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def resolve(tmp_path):
    """Runs `sources.resolve` in a process whose hub is the one on loopback; gives (result or error, the requests)."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = (
        "import json,sys;from pathlib import Path;from spin_core.sources.resolve import resolve\n"
        "from spin_core.errors import BadInput\n"
        "try: s=resolve(*sys.argv[1:4],Path('/'),sys.argv[4]);"
        "print(json.dumps([s.digest,s.path,s.hub]))\n"
        "except BadInput as e: print(json.dumps(str(e)))"
    )

    def run(path, kind, revision="", split="", endpoint=f"http://127.0.0.1:{server.server_port}"):
        Hub.requests.clear()
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
        env = {**os.environ, **quiet, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", code, path, kind, revision, split]
        root = Path(__file__).resolve().parents[2]
        ran = subprocess.run(command, capture_output=True, text=True, env=env, cwd=root, timeout=100)
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout), list(Hub.requests)

    yield run
    server.shutdown()
    server.server_close()


def test_resolve_hub_model_pins_the_commit_and_fetches_what_it_uses(resolve):
    """Catches: a branch name in place of the commit, fetching every format that a repository holds, and weights where
    the tokenizer alone is asked for."""
    (_, path, _), requests = resolve("acme/good", "tokenizer")
    assert [p.name for p in Path(path).iterdir()] == ["config.json"]
    assert not [line for line in requests if line.endswith(".safetensors")]
    (digest, path, hub_id), requests = resolve("acme/good", "model")
    assert hub_id == f"acme/good@{COMMIT}"
    assert sorted(p.name for p in Path(path).iterdir()) == ["config.json", "model.safetensors"]
    assert not [line for line in requests if "resolve" in line and COMMIT not in line]
    assert resolve("acme/good", "model", "main")[0][0] == digest


def test_resolve_hub_dataset_fetches_the_split_only(resolve):
    """Catches: test rows among the training rows, and a digest that does not follow the content."""
    (digest, path, _), requests = resolve("acme/rows", "dataset", split="train")
    assert [p.name for p in Path(path).rglob("*.jsonl")] == ["train-00000-of-00001.jsonl"]
    assert not [line for line in requests if "test-0" in line]
    (other, _, _), _ = resolve("acme/rows", "dataset", split="test")
    assert other != digest
    assert resolve("acme/rows", "dataset", split="train")[0][0] == digest, "with the test file beside it"


def test_resolve_hub_pairs_in_a_folder_are_those_of_the_folder(resolve):
    """Catches: names from the repository's root looked for in its folder."""
    (_, path, _), _ = resolve("acme/pairs/iter1", "pairs")
    assert sorted(p.name for p in Path(path).iterdir()) == [f"{s}-00000-of-00001.parquet" for s in ("test", "train")]


def test_resolve_hub_dataset_configuration_must_be_named(resolve):
    """Catches: the rows of two configurations mixed."""
    message, _ = resolve("acme/configs", "dataset", split="train")
    assert "several configurations" in message and "acme/configs/main" in message
    (_, path, _), _ = resolve("acme/configs/main", "dataset", split="train")
    assert [p.name for p in Path(path).iterdir()] == ["train.jsonl"]


@pytest.mark.parametrize(
    "path, kind, revision, message",
    [
        ("acme/pickled", "model", "", "pickled (pytorch_model.bin)"),
        ("acme/code", "model", "", "has `auto_map`"),
        ("acme/fp8", "model", "", "quant_method fp8"),
        ("acme/none", "model", "", "the hub shows no model of this name"),
        ("acme/none", "dataset", "", "the hub shows no dataset of this name"),
        ("acme/good", "model", "nowhere", "has no revision 'nowhere'"),
        ("acme/rows", "dataset", "", "no file is named for the split 'validation', but there are train, test"),
    ],
)
def test_resolve_hub_unusable_is_one_sentence_and_fetches_no_weights(resolve, path, kind, revision, message):
    """Catches: downloading gigabytes to refuse them, or the client's traceback."""
    result, requests = resolve(path, kind, revision, "validation")
    assert isinstance(result, str) and message in result and "\n" not in result
    assert not [line for line in requests if line.endswith((".safetensors", ".bin"))]


def test_resolve_hub_out_of_reach_is_one_sentence(resolve):
    """Catches: a connection traceback where there is no network."""
    result, _ = resolve("acme/good", "model", endpoint="http://127.0.0.1:9")
    assert (
        isinstance(result, str) and "the hub cannot be read" in result and "local copy" in result and "\n" not in result
    )
