"""A Hugging Face hub on loopback: repositories with branches and commits, tokens with rights, LFS.

It speaks what the client (huggingface_hub) sends: info, tree, resolve with redirects for LFS files, create, branch,
preupload, LFS batch and PUT, commit as NDJSON. No xet: the client runs with HF_HUB_DISABLE_XET=1.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".parquet", ".bin")


@dataclass
class Repo:
    """`commits`: id → (message, files); `refs`: branch or tag → id."""

    private: bool = False
    gated: bool = False
    commits: dict[str, tuple[str, dict[str, bytes]]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], message: str = "files", branch: str = "main") -> str:
        parent = self.refs.get(branch, "")
        content = "".join(f"{name} {hashlib.sha256(data).hexdigest()}\n" for name, data in sorted(files.items()))
        sha = hashlib.sha1(f"{parent}{message}{content}{len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = (message, dict(files))
        self.refs[branch] = sha
        return sha

    def find(self, revision: str) -> str | None:
        if revision in self.refs:
            return self.refs[revision]
        matches = [sha for sha in self.commits if len(revision) >= 7 and sha.startswith(revision)]
        return matches[0] if len(matches) == 1 else None


def _take(request: str) -> None:
    """Of a hub that refuses nothing; by name, so that it can be kept with the run that read it."""


@dataclass
class Hub:
    """All repositories (`models/acme/good`), tokens → organisations they may write to, and the requests it got."""

    repos: dict[str, Repo] = field(default_factory=dict)
    tokens: dict[str, set[str]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    authorised: int = 0
    url: str = ""
    infos_left: int = -1
    """After so many questions for a repository's info every token is revoked; -1: never."""
    refuse: Callable[[str], tuple[int, dict[str, str]] | None] = _take
    """Is shown each request (`GET /api/…`); a status and headers answer it instead."""

    def add(self, name: str, files: dict[str, bytes], **how: Any) -> Repo:
        repo = self.repos[name] = Repo(**how)
        repo.commit(files)
        self.objects |= {hashlib.sha256(data).hexdigest(): data for data in files.values()}
        return repo

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        repo = self.repos[name]
        return repo.commits[repo.refs[branch]][1]


class Refused(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, text: str, code: str = "", headers: dict[str, str] | None = None):
        self.status, self.text, self.code, self.headers = status, text, code, headers or {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: ClassVar[Hub]

    def answer(self) -> None:
        split = urlsplit(self.path)
        self.where, self.query = unquote(split.path).strip("/"), parse_qs(split.query)
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else b""
        self.hub.requests.append(f"{self.command} /{self.where}")
        try:
            if refused := self.hub.refuse(self.hub.requests[-1]):
                raise Refused(refused[0], "refused by a test", headers=refused[1])
            self.who = self.token()
            self.route()
        except Refused as refused:
            headers = {"X-Error-Message": refused.text} | ({"X-Error-Code": refused.code} if refused.code else {})
            self.reply({"error": refused.text}, refused.status, headers | refused.headers)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def token(self) -> str | None:
        given = self.headers.get("Authorization", "")
        if not given:
            return None
        name = given.removeprefix("Bearer ")
        if name not in self.hub.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        self.hub.authorised += 1
        return name

    def route(self) -> None:
        parts = self.where.split("/")
        if self.where == "api/repos/create":
            return self.create(json.loads(self.body))
        if self.where == "api/validate-yaml":
            return self.validate(json.loads(self.body))
        if parts[0] == "lfs":
            return self.put_object(parts[1])
        if parts[0] == "cdn":
            return self.send(200, self.hub.objects[parts[1]], {})
        if parts[0] == "api" and len(parts) > 3:
            name, what, rest = "/".join(parts[1:4]), parts[4] if len(parts) > 4 else "", "/".join(parts[5:])
            act = {
                "": self.info,
                "revision": self.info,
                "tree": self.tree,
                "branch": self.branch,
                "paths-info": self.paths_info,
            }
            act |= {"preupload": self.preupload, "commit": self.commit}
            return act[what](name, rest)
        if self.where.endswith("/info/lfs/objects/batch"):
            return self.batch(self.kind(self.where.removesuffix(".git/info/lfs/objects/batch")))
        if "/resolve/" in self.where:
            name, _, rest = self.where.partition("/resolve/")
            return self.resolve(self.kind(name), *rest.split("/", 1))
        raise Refused(404, f"no such page: {self.where}")

    @staticmethod
    def kind(name: str) -> str:
        return name if name.startswith("datasets/") else f"models/{name}"

    def repo(self, name: str, write: bool = False) -> Repo:
        repo = self.hub.repos.get(name)
        organisation = name.split("/")[1]
        mine = self.who is not None and organisation in self.hub.tokens[self.who]
        if repo is None or (repo.private and not mine):
            # As the real one: who is not logged in gets 401, and a private repository looks like none.
            raise Refused(401 if self.who is None else 404, "Repository not found", "RepoNotFound")
        if write and not mine:
            raise Refused(403, f"You don't have the rights to write to {organisation}")
        return repo

    def at(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repo = self.repo(name)
        sha = repo.find(revision or "main")
        if sha is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha, repo.commits[sha][1]

    def info(self, name: str, revision: str) -> None:
        if self.hub.infos_left == 0:
            self.hub.tokens.clear()
            raise Refused(401, "Invalid credentials in Authorization header")
        self.hub.infos_left -= 1
        sha, files = self.at(name, revision)
        repo = self.hub.repos[name]
        answer = {"id": name.partition("/")[2], "sha": sha, "private": repo.private, "gated": "auto" * repo.gated}
        self.reply({**answer, "siblings": [{"rfilename": file} for file in files], "tags": []})

    def tree(self, name: str, rest: str) -> None:
        revision, _, folder = rest.partition("/")
        _, files = self.at(name, revision)
        there = [one for one in self.entries(files) if not folder or one["path"].startswith(f"{folder}/")]
        if folder and not there:
            raise Refused(404, "Entry not found", "EntryNotFound")
        deep = self.query.get("recursive", [""])[0].lower() in ("true", "1")
        depth = folder.count("/") + bool(folder)
        self.reply([one for one in there if deep or one["path"].count("/") == depth])

    def paths_info(self, name: str, revision: str) -> None:
        _, files = self.at(name, revision)
        wanted = parse_qs(self.body.decode()).get("paths", [])
        self.reply([one for one in self.entries(files) if one["path"] in wanted])

    def entries(self, files: dict[str, bytes]) -> list[dict]:
        folders = {str(above) for file in files for above in PurePosixPath(file).parents if above.name}
        made = [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in sorted(folders)]
        return made + [self.entry(file, data) for file, data in sorted(files.items())]

    def entry(self, file: str, data: bytes) -> dict:
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        answer: dict[str, Any] = {"type": "file", "path": file, "size": len(data), "oid": blob}
        if file.endswith(LFS_SUFFIXES):
            answer["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return answer

    def resolve(self, name: str, revision: str, file: str) -> None:
        repo = self.repo(name)
        sha, files = self.at(name, revision)
        mine = self.who is not None and name.split("/")[1] in self.hub.tokens[self.who]
        if repo.gated and not mine:
            raise Refused(403 if self.who else 401, f"Access to model {name} is restricted", "GatedRepo")
        if file not in files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        entry = self.entry(file, files[file])
        headers = {"X-Repo-Commit": sha, "ETag": f'"{entry["oid"]}"', "Accept-Ranges": "bytes"}
        if "lfs" not in entry:
            return self.send(200, files[file], headers)
        oid = entry["lfs"]["oid"]
        self.hub.objects[oid] = files[file]
        linked = {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(len(files[file]))}
        # Another host than the hub's, as the real one's storage: only then is the redirect itself the answer.
        elsewhere = self.hub.url.replace("127.0.0.1", "localhost")
        self.send(302, b"", {**headers, **linked, "Location": f"{elsewhere}/cdn/{oid}"})

    def create(self, request: dict) -> None:
        name = f"{request.get('type') or 'model'}s/{request['organization']}/{request['name']}"
        if self.who is None:
            raise Refused(401, "You must be logged in to create a repository")
        if request["organization"] not in self.hub.tokens[self.who]:
            raise Refused(403, f"You don't have the rights to create a model under {request['organization']}")
        url = f"{self.hub.url}/{name.removeprefix('models/')}"
        if name in self.hub.repos:
            return self.reply({"error": "You already created this model repo", "url": url}, 409)
        private = bool(request.get("private")) or request.get("visibility") == "private"
        self.hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=private)
        self.reply({"url": url, "name": name.partition("/")[2]})

    def branch(self, name: str, branch: str) -> None:
        repo = self.repo(name, write=True)
        if branch in repo.refs:
            raise Refused(409, "Reference already exists")
        repo.refs[branch] = repo.refs["main"]
        self.reply({})

    def validate(self, request: dict) -> None:
        parts = request["content"].split("---\n")
        data = yaml.safe_load(parts[1]) if len(parts) > 2 else None
        good = isinstance(data, dict) and isinstance(data.get("tags", []), list)
        self.reply({"errors": [] if good else [{"message": "no metadata"}], "warnings": []}, 200 if good else 400)

    def preupload(self, name: str, revision: str) -> None:
        self.repo(name, write=True)
        _, files = self.at(name, revision)
        lines = []
        for one in json.loads(self.body)["files"]:
            lfs = one["path"].endswith(LFS_SUFFIXES)
            line = {"path": one["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            if one["path"] in files:
                entry = self.entry(one["path"], files[one["path"]])
                line["oid"] = entry["lfs"]["oid"] if lfs else entry["oid"]
            lines.append(line)
        self.reply({"files": lines})

    def batch(self, name: str) -> None:
        self.repo(name, write=True)
        lines = []
        for one in json.loads(self.body)["objects"]:
            line: dict[str, Any] = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.hub.objects:
                line["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}
            lines.append(line)
        self.reply({"transfer": "basic", "objects": lines})

    def put_object(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "the content is not what its name says")
        self.hub.objects[oid] = self.body
        self.send(200, b"", {})

    def commit(self, name: str, branch: str) -> None:
        repo = self.repo(name, write=True)
        sha, files = self.at(name, branch)
        files = dict(files)
        lines = [json.loads(line) for line in self.body.splitlines() if line]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, sha):
            raise Refused(412, "the branch is at another commit")
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        new = repo.commit(files, f"{header['summary']}\n{header['description']}", branch)
        self.reply(
            {
                "commitUrl": f"{self.hub.url}/{name.removeprefix('models/')}/commit/{new}",
                "commitOid": new,
                "success": True,
            }
        )

    def reply(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


def start() -> tuple[Hub, ThreadingHTTPServer]:
    """A hub at work in a thread of this process; `shutdown()` and `server_close()` end it."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return hub, server
