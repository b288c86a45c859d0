"""A stand-in for the Hub: a server on this machine that answers what the Hub's client asks for, from memory."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Repository:
    """Files by revision and path; `main` is the last commit."""

    private: bool
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)


class Hub(ThreadingHTTPServer):
    """Repositories by id, and the tokens of all requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.tokens: set[str | None] = set()


class _Answers(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        """Nothing is logged."""

    def do_POST(self) -> None:
        self.server.tokens.add(self.headers["Authorization"])
        body = self.rfile.read(int(self.headers["Content-Length"]))
        _, _, *names, action, branch = f"{self.path}/".removesuffix("/").split("/")
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            new = name not in self.server.repositories
            private = asked.get("private") or asked.get("visibility") == "private"  # of the client 1, and of 2
            self.server.repositories.setdefault(name, Repository(private))
            self._json({"url": f"{self.server.url}/{name}"}, 200 if new else 409)
        elif action == "preupload":
            files = json.loads(body)["files"]
            stored = {"uploadMode": "regular", "shouldIgnore": False}
            self._json({"files": [{"path": each["path"], **stored} for each in files]})
        elif action == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            added = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            name = "/".join(names[-2:])
            commits = self.server.repositories[name].files
            oid = hashlib.sha1(body).hexdigest()
            commits[oid] = commits[branch] = commits.get(branch, {}) | added
            self._json({"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid})

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/"):
            self.server.tokens.add(self.headers["Authorization"])
            name = "/".join(self.path.split("/")[3:5])
            found = self.server.repositories[name]
            self._json({"id": name, "private": found.private, "siblings": [], "tags": []})
        elif "/resolve/" in self.path:
            self.server.tokens.add(self.headers["Authorization"])
            _, owner, name, _, revision, file = self.path.split("/", 5)
            commits = self.server.repositories[f"{owner}/{name}"].files
            content = commits[revision][file]
            oid = next(oid for oid, files in commits.items() if files is commits[revision])
            self._send(content, 200, **{"X-Repo-Commit": oid, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})
        else:  # what a client asks beside that, of no repository
            self._json({}, 404)

    do_HEAD = do_GET

    def _json(self, content: object, status: int = 200) -> None:
        self._send(json.dumps(content).encode(), status, **{"Content-Type": "application/json"})

    def _send(self, content: bytes, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
