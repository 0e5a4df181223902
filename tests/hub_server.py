"""Local stand-in of the Hugging Face hub, for the real `huggingface_hub` client: models and data sets on 127.0.0.1.

It implements what the client calls to look up, list, download (Range, ETag) and upload (preupload, Git LFS in place of
Xet, commit), with the hub's answers to a missing repository, revision or file, to a gated or private repository, and to
a token without access.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

_LARGE = (
    ".safetensors",
    ".bin",
    ".pt",
    ".parquet",
    ".tar",
    ".zip",
    ".flac",
    ".wav",
)  # kept in Git LFS, as the hub does


@dataclass
class Repo:
    """Commits as files by path; `refs` has branches and tags."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: Mapping[str, bytes], revision: str = "main") -> str:
        sha = secrets.token_hex(20)
        self.commits[sha] = dict(files)
        self.refs[revision] = sha
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.refs.get(revision, revision)]


class HubServer:
    """
    Attributes:
        repos: by `("model" | "dataset", "owner/name")`.
        users: owner by token. A token sees the private repositories of its owner, and writes to those alone.
        requests: "METHOD path", in order.
        cut_downloads: sizes in bytes after which the next downloads of files lose their connection, first to last.
    """

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.users: dict[str, str] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.cut_downloads: list[int] = []
        self.is_stopped = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(
        self,
        repo_id: str,
        files: Mapping[str, bytes] | Path,
        *,
        repo_type: str = "model",
        private: bool = False,
        gated: bool = False,
    ) -> Repo:
        """Creates a repository, of files by path or of a folder."""
        if isinstance(files, Path):
            paths = [path for path in sorted(files.rglob("*")) if path.is_file()]
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in paths}
        repo = self.repos[repo_type, repo_id] = Repo(private=private, gated=gated)
        repo.commit(files)
        return repo

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """Variables of a process that uses this hub, with its cache in `home`."""
        found = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        return found | ({"HF_TOKEN": token} if token else {})

    def connect(self, monkeypatch: pytest.MonkeyPatch, home: Path, token: str | None = None) -> None:
        """Makes `huggingface_hub` of this process use this hub, with its cache in `home`."""
        from huggingface_hub import constants, hf_api

        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(hf_api.api, "endpoint", self.url)
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        if token is None:
            monkeypatch.delenv("HF_TOKEN", raising=False)
        else:
            monkeypatch.setenv("HF_TOKEN", token)

    @contextmanager
    def running(self) -> Iterator[HubServer]:
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.is_stopped = True
            self._server.shutdown()
            self._server.server_close()
            thread.join()


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, **more: str) -> None:
        super().__init__(message)
        self.status, self.code, self.more = status, code, more


def _file_entry(path: str, content: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": oid}
    if path.endswith(_LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *arguments: Any) -> None: ...

        def do_GET(self) -> None:
            self._answer(self._get)

        do_HEAD = do_GET

        def do_POST(self) -> None:
            self._answer(self._post)

        def do_PUT(self) -> None:
            self._answer(self._put)

        def _answer(self, act: Any) -> None:
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.route = unquote(urlsplit(self.path).path)
            if hub.is_stopped:  # connections that the client keeps open outlive the server
                self.close_connection = True
                return
            hub.requests.append(f"{self.command} {self.route}")
            try:
                act()
            except _Refused as refused:
                headers = {"X-Error-Message": str(refused)} | ({"X-Error-Code": refused.code} if refused.code else {})
                self._send(json.dumps({"error": str(refused), **refused.more}).encode(), refused.status, headers)

        def _send(self, body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                is_download = status in (200, 206) and "/resolve/" in self.route
                cut = hub.cut_downloads.pop(0) if is_download and hub.cut_downloads else None
                self.wfile.write(body[:cut])
                self.close_connection = self.close_connection or cut is not None

        def _json(self, value: Any) -> None:
            self._send(json.dumps(value).encode())

        def _user(self) -> str | None:
            header = self.headers.get("Authorization")
            if header is None:
                return None
            user = hub.users.get(header.removeprefix("Bearer "))
            if user is None:
                raise _Refused(401, "Invalid credentials in Authorization header")
            return user

        def _repo(self, kind: str, name: str) -> Repo:
            repo, user = hub.repos.get((kind, name)), self._user()
            if repo is None or (repo.private and user != name.partition("/")[0]):
                if user is None:
                    raise _Refused(401, "Invalid username or password.")
                raise _Refused(404, "Repository not found", "RepoNotFound")
            return repo

        def _writable(self, kind: str, name: str) -> Repo:
            user, repo = self._user(), self._repo(kind, name)
            if user != name.partition("/")[0]:
                raise _Refused(403, f"You don't have the rights to create a commit on {name}")
            return repo

        def _commit_of(self, repo: Repo, revision: str) -> str:
            sha = repo.refs.get(revision, revision)
            if sha not in repo.commits:
                raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return sha

        def _get(self) -> None:
            if self.route == "/api/whoami-v2":
                user = self._user()
                if user is None:
                    raise _Refused(401, "Invalid username or password.")
                return self._json({"name": user, "type": "user", "orgs": []})
            if found := re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", self.route):
                kind, name, revision, folder = found.groups()
                repo = self._repo(kind, name)
                recursive = parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower() in ("true", "1")
                entries = _tree(repo.commits[self._commit_of(repo, revision)], folder or "", recursive=recursive)
                if folder and not entries:
                    raise _Refused(404, f"{folder} does not exist", "EntryNotFound")
                return self._json(entries)
            if found := re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/revision/(.+))?", self.route):
                kind, name, revision = found.groups()
                repo = self._repo(kind, name)
                sha = self._commit_of(repo, revision or "main")
                files = [{"rfilename": path} for path in repo.commits[sha]]
                return self._json(
                    {"id": name, "modelId": name, "sha": sha, "private": repo.private, "tags": [], "siblings": files}
                )
            if found := re.fullmatch(r"(?:/(datasets))?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.route):
                return self._download("dataset" if found[1] else "model", *found.groups()[1:])
            raise _Refused(404, f"no such page: {self.route}")

        def _download(self, kind: str, name: str, revision: str, path: str) -> None:
            repo = self._repo(kind, name)
            if repo.gated and self._user() != name.partition("/")[0]:
                raise _Refused(403 if self._user() else 401, f"Access to {name} is restricted", "GatedRepo")
            sha = self._commit_of(repo, revision)
            if path not in repo.commits[sha]:
                raise _Refused(404, f"{path} does not exist", "EntryNotFound")
            content = repo.commits[sha][path]
            entry = _file_entry(path, content)
            headers = {
                "ETag": f'"{entry.get("lfs", entry)["oid"]}"',
                "X-Repo-Commit": sha,
                "Accept-Ranges": "bytes",
                "Content-Type": "application/octet-stream",
            }
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if wanted is None:
                return self._send(content, 200, headers)
            begin, end = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            if begin >= len(content):
                return self._send(b"", 416, {"Content-Range": f"bytes */{len(content)}"})
            headers["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
            self._send(content[begin : end + 1], 206, headers)

        def _post(self) -> None:
            if self.route == "/api/validate-yaml":
                return self._json({"errors": [], "warnings": []})
            if self.route == "/api/repos/create":
                return self._create(json.loads(self.body))
            if found := re.fullmatch(r"(?:/(datasets))?/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.route):
                self._writable("dataset" if found[1] else "model", found[2])
                return self._json({"transfer": "basic", "objects": list(map(self._upload, self._objects()))})
            found = re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)/(preupload|commit|paths-info)/(.+)", self.route)
            if found is None:
                raise _Refused(404, f"no such page: {self.route}")
            kind, name, action, revision = found.groups()
            if action == "paths-info":
                repo = self._repo(kind, name)
                files = repo.commits[self._commit_of(repo, revision)]
                wanted = json.loads(self.body)["paths"]
                return self._json([_file_entry(path, files[path]) for path in wanted if path in files])
            repo = self._writable(kind, name)
            if action == "commit":
                return self._commit(repo, name, revision)
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(_LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(self.body)["files"]
            ]
            self._json({"files": modes})

        def _create(self, wanted: dict[str, Any]) -> None:
            user = self._user()
            if user is None:
                raise _Refused(401, "Invalid username or password.")
            owner = wanted.get("organization") or user
            if owner != user:
                raise _Refused(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
            key = (wanted.get("type") or "model", f"{owner}/{wanted['name']}")
            if key in hub.repos:
                raise _Refused(409, "You already created this model repo", url=f"{hub.url}/{key[1]}")
            hub.repos[key] = Repo(private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
            hub.repos[key].commit({".gitattributes": b""})
            self._json({"url": f"{hub.url}/{key[1]}", "name": key[1], "id": secrets.token_hex(8)})

        def _objects(self) -> list[dict[str, Any]]:
            return json.loads(self.body)["objects"]

        def _upload(self, wanted: dict[str, Any]) -> dict[str, Any]:
            if wanted["oid"] in hub.large:
                return wanted
            return wanted | {"actions": {"upload": {"href": f"{hub.url}/lfs/{wanted['oid']}"}}}

        def _put(self) -> None:
            oid = self.route.removeprefix("/lfs/")
            if hashlib.sha256(self.body).hexdigest() != oid:
                raise _Refused(400, "the content is not that of its SHA-256")
            hub.large[oid] = self.body
            self._send(b"")

        def _commit(self, repo: Repo, name: str, revision: str) -> None:
            files = dict(repo.files(revision)) if revision in repo.refs else {}
            for line in self.body.splitlines():
                key, value = (entry := json.loads(line))["key"], entry["value"]
                if key == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif key == "lfsFile":
                    files[value["path"]] = hub.large[value["oid"]]
                elif key == "deletedFile":
                    del files[value["path"]]
            sha = repo.commit(files, revision)
            self._json({"commitUrl": f"{hub.url}/{name}/commit/{sha}", "commitOid": sha})

    return Handler


def _tree(files: Mapping[str, bytes], folder: str, *, recursive: bool) -> list[dict[str, Any]]:
    """Files and folders below a folder of a repository, "" for its root."""
    root = PurePosixPath(folder)
    inside = {path: content for path, content in files.items() if root in PurePosixPath(path).parents}
    folders = {parent for path in inside for parent in PurePosixPath(path).parents if root in parent.parents}
    entries: list[dict[str, Any]] = [
        {"type": "directory", "path": str(path), "size": 0, "oid": "0" * 40} for path in sorted(folders)
    ]
    entries += [_file_entry(path, content) for path, content in inside.items()]
    return [entry for entry in entries if recursive or PurePosixPath(entry["path"]).parent == root]
