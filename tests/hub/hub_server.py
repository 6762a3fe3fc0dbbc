"""A small server of the Hub's HTTP API on the loopback address, for tests with the real `huggingface_hub` client.

No kept package does this: the mirrors on PyPI only read. It knows accounts with tokens that write or read, public and
private model repositories, commits of regular and LFS files, revisions, and faults on demand.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LFS_SUFFIXES = (".safetensors", ".png")  # what the Hub's .gitattributes sends to its large files


@dataclass
class Repository:
    """Its commits in order, each with all files by path; a file is (contents, whether LFS)."""

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
    """Its state, and what shall go wrong.

    Attributes:
        accounts: (name, role) by token.
        failures: requests to answer by 503 before the next is served, by a pattern of method and path.
        cuts: responses to cut off in the middle, by such a pattern.
        seen: method and path of each request.
    """

    accounts: dict[str, tuple[str, str]]
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    cuts: dict[str, int] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)

    def due(self, faults: dict[str, int], request: str) -> bool:
        for pattern, left in faults.items():
            if left and re.search(pattern, request):
                faults[pattern] -= 1
                return True
        return False


@contextmanager
def serve(hub: Hub) -> Iterator[str]:
    """The address of a server of this hub."""
    handler = type("Handler", (HubHandler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class HubHandler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the screen."""

    def do_GET(self) -> None:
        self.route()

    do_HEAD = do_POST = do_PUT = do_GET

    def route(self) -> None:
        path = self.path.split("?")[0]
        request = f"{self.command} {path}"
        self.hub.seen.append(request)
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else self.chunks()
        if self.hub.due(self.hub.failures, request):
            return self.reply(503, {"error": "busy"})
        routes: list[tuple[str, Callable[..., None]]] = [
            (r"GET /api/whoami-v2", self.whoami),
            (r"POST /api/repos/create", self.create),
            (r"POST /api/validate-yaml", lambda: self.reply(200, {"errors": [], "warnings": []})),
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
            found = re.fullmatch(pattern, request)
            if found:
                return handle(**found.groupdict())
        self.reply(404, {"error": f"no such route: {request}"})

    def chunks(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return b""
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def account(self) -> tuple[str, str] | None:
        return self.hub.accounts.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def repository(self, repo: str) -> Repository | None:
        """One that the caller may see; the Hub does not tell a hidden one from none."""
        found, account = self.hub.repositories.get(repo), self.account()
        if found is None or (found.private and (account is None or account[0] != repo.split("/")[0])):
            headers = {"X-Error-Code": "RepoNotFound"}
            self.reply(401 if account is None else 404, {"error": "Repository not found"}, headers)
            return None
        return found

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
        wanted, account = json.loads(self.body), self.account()
        name = f"{wanted.get('organization') or (account or ('',))[0]}/{wanted['name']}"
        if not self.may_write(name):
            return
        known = name in self.hub.repositories
        if not known:
            self.hub.repositories[name] = Repository(
                wanted.get("visibility") == "private" or bool(wanted.get("private"))
            )
            self.hub.repositories[name].commit({})
        self.reply(409 if known else 200, {"url": f"http://{self.headers['Host']}/{name}", "id": name, "name": name})

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
        for wanted in json.loads(self.body)["objects"]:
            upload = {"href": f"http://{host}/large/{wanted['oid']}"}
            actions = {"upload": upload, "verify": {"href": f"http://{host}/verify"}}
            objects.append(wanted if wanted["oid"] in self.hub.large else wanted | {"actions": actions})
        self.reply(200, {"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.reply(400, {"error": "checksum"})
        self.hub.large[oid] = self.body
        self.reply(200, {})

    def commit(self, repo: str, revision: str) -> None:
        found = self.repository(repo)
        if found is None or not self.may_write(repo):
            return
        before = found.at(revision)
        files = dict(before[1]) if before else {}
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = (base64.b64decode(value["content"]), False)
            elif operation["key"] == "lfsFile":
                files[value["path"]] = (self.hub.large[value["oid"]], True)
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        sha = found.commit(files, revision)
        url = f"http://{self.headers['Host']}/{repo}/commit/{sha}"
        self.reply(200, {"commitUrl": url, "commitOid": sha, "hookOutput": "", "success": True})

    def info(self, repo: str, revision: str = "main") -> None:
        found = self.repository(repo)
        if found is None:
            return
        commit = found.at(revision)
        if commit is None:
            return self.reply(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        sha, files = commit
        siblings = [{"rfilename": name} for name in files]
        self.reply(200, {"id": repo, "sha": sha, "private": found.private, "siblings": siblings, "tags": []})

    def tree(self, repo: str, revision: str) -> None:
        found = self.repository(repo)
        if found is None:
            return
        commit = found.at(revision)
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
        found = self.repository(repo)
        if found is None:
            return
        commit = found.at(revision)
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
        if self.hub.due(self.hub.cuts, f"{self.command} {self.path.split('?')[0]}"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(body)
