"""A Hub on this machine: what huggingface_hub asks when it fetches a file, makes a repository and commits into it.

Repositories are kept in memory. A token "owner" may do everything, "reader" may not write, any other is no login.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlparse

import yaml


@dataclass
class Repository:
    """Its commits, oldest first: hash, message and all files. Nobody but the owner sees a private one."""

    private: bool = False
    gated: bool = False
    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)

    def commit(self, message: str, files: dict[str, bytes]) -> str:
        kept = {**(self.commits[-1][2] if self.commits else {}), **files}
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in kept.items()}
        number = hashlib.sha1(f"{len(self.commits)}{message}{sums}".encode()).hexdigest()
        self.commits.append((number, message, kept))
        return number

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        for number, _, files in reversed(self.commits):
            if revision in ("main", number):
                return number, files
        return None


class Hub:
    """The repositories by name, and what was asked: method and path."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.repositories: dict[str, Repository] = {}
        self.asked: list[str] = []

    def put(self, name: str, files: dict[str, bytes], private: bool = False, gated: bool = False) -> str:
        """Make a repository of one commit; its hash."""
        self.repositories[name] = Repository(private, gated)
        return self.repositories[name].commit("first", files)


class Handler(BaseHTTPRequestHandler):
    """The answers."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def say(self, value: Any, status: int = 200) -> None:
        self.answer(status, json.dumps(value).encode(), Content_Type="application/json")

    def refuse(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        reported = {"X_Error_Code": code, "X_Error_Message": message, **headers}
        self.answer(status, json.dumps({"error": message}).encode(), Content_Type="application/json", **reported)

    @property
    def user(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def repository(self, name: str) -> Repository | None:
        """One that may be seen; otherwise the refusal is sent. The real Hub too says 401 of one that is not there."""
        result = self.hub.repositories.get(name)
        if result is None or (result.private and self.user != "owner"):
            self.refuse(401, "RepoNotFound", "Repository not found")
            return None
        return result

    def do_GET(self) -> None:
        path = [unquote(part) for part in urlparse(self.path).path.split("/")[1:]]
        self.hub.asked.append(f"{self.command} {'/'.join(path)}")
        if path[0] == "api":
            if (result := self.repository("/".join(path[2:4]))) is not None:
                self.say({"id": "/".join(path[2:4]), "sha": result.commits[-1][0], "siblings": [], "tags": []})
            return
        user, name, _, revision, file = path
        if (result := self.repository(f"{user}/{name}")) is None:
            return
        if result.gated and self.user != "owner":
            self.refuse(403, "GatedRepo", "Access to this model is restricted")
        elif (version := result.at(revision)) is None:
            self.refuse(404, "RevisionNotFound", "Invalid rev id")
        elif file not in version[1]:
            self.refuse(404, "EntryNotFound", "Entry not found", X_Repo_Commit=version[0])
        else:
            body = version[1][file]
            tag = hashlib.sha256(body).hexdigest()
            self.answer(200, body, ETag=f'"{tag}"', X_Repo_Commit=version[0], Accept_Ranges="bytes")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path = [unquote(part) for part in urlparse(self.path).path.split("/")[1:]]
        self.hub.asked.append(f"POST {'/'.join(path)}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.user not in ("owner", "reader"):
            self.refuse(401, message="Invalid username or password.")
        elif self.user == "reader":
            self.refuse(403, message="You have read access only")
        elif path[-1] == "create":
            self.create(json.loads(body))
        elif path[-1] == "validate-yaml":
            yaml.safe_load(json.loads(body)["content"].split("---")[1])
            self.say({"errors": [], "warnings": []})
        elif path[4] == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            self.say({"files": [{"path": file, "uploadMode": "regular", "shouldIgnore": False} for file in files]})
        else:
            self.commit("/".join(path[2:4]), [json.loads(line) for line in body.splitlines()])

    def create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        known = name in self.hub.repositories
        private = wanted.get("visibility") == "private" or wanted.get("private") is True
        self.hub.repositories.setdefault(name, Repository(private=private))
        self.say({"url": f"{self.hub.address}/{name}"}, 409 if known else 200)

    def commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        head, *files = lines
        content = {f["value"]["path"]: base64.b64decode(f["value"]["content"]) for f in files if f["key"] == "file"}
        number = self.hub.repositories[name].commit(head["value"]["summary"], content)
        self.say({"success": True, "commitOid": number, "commitUrl": f"{self.hub.address}/{name}/commit/{number}"})


@contextmanager
def serve() -> Iterator[Hub]:
    """Within the block a Hub listens on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Handler.hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Handler.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
