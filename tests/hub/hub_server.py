"""A small server of the Hub's HTTP API on the loopback address, for tests with the real `huggingface_hub` client.

No package on PyPI does this: the mirrors there are read-only. The server has accounts with write or read tokens, public
and private model repositories, commits of regular and LFS files, revisions, and faults on demand.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LFS_SUFFIXES = (".safetensors", ".png")  # LFS files according to the Hub's .gitattributes


@dataclass
class Repository:
    """A repository: its commits in order, each with all files by path. A file is (contents, whether LFS)."""

    private: bool
    commits: list[tuple[str, dict[str, tuple[bytes, bool]]]] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, tuple[bytes, bool]], branch: str = "main") -> str:
        sha = hashlib.sha1(f"{len(self.commits)}{branch}".encode()).hexdigest()
        self.commits.append((sha, files))
        self.branches[branch] = sha
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, tuple[bytes, bool]]] | None:
        sha = self.branches.get(revision, revision)
        return next((commit for commit in self.commits if commit[0] == sha), None)


@dataclass
class Hub:
    """The state of the Hub, and the faults to produce.

    Attributes:
        accounts: (name, role) by token.
        repositories: the repositories by name.
        large: contents of LFS files by SHA-256.
        failures: number of requests to answer with 503, by a pattern of method and path.
        cuts: number of responses to cut off in the middle, by a pattern of method and path.
    """

    accounts: dict[str, tuple[str, str]]
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    cuts: dict[str, int] = field(default_factory=dict)

    def consume(self, faults: dict[str, int], request: str) -> bool:
        for pattern, left in faults.items():
            if left and re.search(pattern, request):
                faults[pattern] -= 1
                return True
        return False


@contextmanager
def serve(hub: Hub, reserved: socket.socket) -> Iterator[None]:
    """Run a server of this Hub at the address of a socket that is not listening yet."""
    handler = type("Handler", (HubHandler,), {"hub": hub})
    server = ThreadingHTTPServer(reserved.getsockname(), handler, bind_and_activate=False)
    server.socket = reserved.dup()
    server.server_activate()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


class HubHandler(BaseHTTPRequestHandler):
    """Handler of one request."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self.route()

    do_HEAD = do_POST = do_PUT = do_GET

    def route(self) -> None:
        path = self.path.split("?")[0]
        request = f"{self.command} {path}"
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else self.read_chunks()
        if self.hub.consume(self.hub.failures, request):
            return self.reply(503, {"error": "busy"})
        routes: list[tuple[str, Callable[..., None]]] = [
            (r"GET /api/whoami-v2", self.whoami),
            (r"POST /api/repos/create", self.create),
            (r"POST /api/validate-yaml", self.validate),
            (r"POST /api/models/(?P<repo>.+?)/preupload/(?P<revision>.+)", self.preupload),
            (r"POST /api/models/(?P<repo>.+?)/commit/(?P<revision>.+)", self.commit),
            (r"POST /(?P<repo>.+?)\.git/info/lfs/objects/batch", self.large_files),
            (r"PUT /large/(?P<oid>\w+)", self.store),
            (r"POST /verify", lambda: self.reply(200, {})),
            (r"GET /api/models/(?P<repo>.+?)/tree/(?P<revision>[^/]+).*", self.tree),
            (r"GET /api/models/(?P<repo>.+?)/revision/(?P<revision>.+)", self.info),
            (r"GET /api/models/(?P<repo>[^/]+/[^/]+)", self.info),
            (r"(GET|HEAD) /(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)", self.resolve),
        ]
        for pattern, handle in routes:
            match = re.fullmatch(pattern, request)
            if match:
                return handle(**match.groupdict())
        self.reply(404, {"error": f"no such route: {request}"})

    def read_chunks(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return b""
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def account(self) -> tuple[str, str] | None:
        return self.hub.accounts.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def repository(self, repo: str) -> Repository | None:
        """A repository that the caller may read. The Hub replies in the same way for a private one and for none."""
        repository, account = self.hub.repositories.get(repo), self.account()
        if repository is None or (repository.private and (account is None or account[0] != repo.split("/")[0])):
            headers = {"X-Error-Code": "RepoNotFound"}
            self.reply(401 if account is None else 404, {"error": "Repository not found"}, headers)
            return None
        return repository

    def may_write(self, repo: str) -> bool:
        if self.account() == (repo.split("/")[0], "write"):
            return True
        self.reply(403, {"error": "You don't have the rights to write here"})
        return False

    def whoami(self) -> None:
        account = self.account()
        if account is None:
            return self.reply(401, {"error": "Invalid credentials"})
        name, role = account
        self.reply(200, {"name": name, "type": "user", "auth": {"accessToken": {"role": role}}, "orgs": []})

    def create(self) -> None:
        options, account = json.loads(self.body), self.account()
        name = f"{options.get('organization') or (account or ('',))[0]}/{options['name']}"
        if not self.may_write(name):
            return
        exists = name in self.hub.repositories
        if not exists:
            self.hub.repositories[name] = Repository(
                options.get("visibility") == "private" or bool(options.get("private"))
            )
            self.hub.repositories[name].commit({})
        self.reply(409 if exists else 200, {"url": f"http://{self.headers['Host']}/{name}", "id": name, "name": name})

    def validate(self) -> None:
        known = "no-such-license" not in json.loads(self.body)["content"]
        errors = [] if known else [{"message": '"license" must be one of [apache-2.0, mit, ...]'}]
        self.reply(200 if known else 400, {"errors": errors, "warnings": []})

    def preupload(self, repo: str, revision: str) -> None:
        if not self.may_write(repo):
            return
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(self.body)["files"]
        ]
        self.reply(200, {"files": files})

    def large_files(self, repo: str) -> None:
        if not self.may_write(repo):
            return
        host, objects = self.headers["Host"], []
        for file in json.loads(self.body)["objects"]:
            upload = {"href": f"http://{host}/large/{file['oid']}"}
            actions = {"upload": upload, "verify": {"href": f"http://{host}/verify"}}
            objects.append(file if file["oid"] in self.hub.large else file | {"actions": actions})
        self.reply(200, {"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.reply(400, {"error": "checksum"})
        self.hub.large[oid] = self.body
        self.reply(200, {})

    def commit(self, repo: str, revision: str) -> None:
        repository = self.repository(repo)
        if repository is None or not self.may_write(repo):
            return
        parent = repository.at(revision)
        files = dict(parent[1]) if parent else {}
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = (base64.b64decode(value["content"]), False)
            elif operation["key"] == "lfsFile":
                files[value["path"]] = (self.hub.large[value["oid"]], True)
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        sha = repository.commit(files, revision)
        url = f"http://{self.headers['Host']}/{repo}/commit/{sha}"
        self.reply(200, {"commitUrl": url, "commitOid": sha, "hookOutput": "", "success": True})

    def info(self, repo: str, revision: str = "main") -> None:
        repository = self.repository(repo)
        if repository is None:
            return
        commit = repository.at(revision)
        if commit is None:
            return self.reply(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        sha, files = commit
        siblings = [{"rfilename": name} for name in files]
        self.reply(200, {"id": repo, "sha": sha, "private": repository.private, "siblings": siblings, "tags": []})

    def tree(self, repo: str, revision: str) -> None:
        repository = self.repository(repo)
        if repository is None:
            return
        commit = repository.at(revision)
        if commit is None:
            return self.reply(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        entries = []
        for name, (contents, is_large) in commit[1].items():
            digest = hashlib.sha256(contents).hexdigest()
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(contents), "oid": digest[:40]}
            if is_large:
                entry["lfs"] = {"oid": digest, "size": len(contents), "pointerSize": 134}
            entries.append(entry)
        self.reply(200, entries)

    def resolve(self, repo: str, revision: str, file: str) -> None:
        repository = self.repository(repo)
        if repository is None:
            return
        commit = repository.at(revision)
        if commit is None:
            return self.reply(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        sha, files = commit
        if file not in files:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}
            return self.reply(404, {"error": "Entry not found"}, headers)
        contents, _ = files[file]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha256(contents).hexdigest()}"', "Accept-Ranges": "bytes"}
        first = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if first:
            start = int(first[1])
            headers["Content-Range"] = f"bytes {start}-{len(contents) - 1}/{len(contents)}"
            contents = contents[start:]
        self.reply(206 if first else 200, contents, headers)

    def reply(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.consume(self.hub.cuts, f"{self.command} {self.path.split('?')[0]}"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(body)
