"""A Hub on the loopback interface: what the real client needs of the real one to push and pull models and data sets.

A repository is a list of commits, a commit maps paths to bytes. Private repositories answer to the token alone.
Everything is in memory; `requests` lists what was asked, in order.
"""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_loopback"
KINDS = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}  # name in the API: prefix of the files' addresses


@dataclass
class Repository:
    """Commits from the first to the last, each its id and its files."""

    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)  # name: id of its commit

    def commit(self, files: dict[str, bytes]) -> str:
        text = repr([(path, hashlib.sha256(data).hexdigest()) for path, data in sorted(files.items())])
        sha = hashlib.sha1(f"{len(self.commits)} {text}".encode()).hexdigest()
        self.commits.append((sha, files))
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1]
        revision = self.tags.get(revision, revision)
        return next((commit for commit in self.commits if commit[0].startswith(revision)), None)


Answer = tuple[int, dict, bytes]  # status, headers, content


class LoopbackHub(ThreadingHTTPServer):
    """`with LoopbackHub() as hub:` serves at `hub.endpoint` until the block ends.

    `hub.spoil(make, method, path)` gives the answer, which is `make()` unless it is set to something else. None closes
    the connection without an answer; content shorter than its `Content-Length` closes it in the midst of one.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}  # "models/org/name"
        self.blobs: dict[str, bytes] = {}  # by SHA-256
        self.requests: list[str] = []
        self.spoil: Callable[[Callable[[], Answer], str, str], Answer | None] = lambda make, method, path: make()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.shutdown()
        self.server_close()

    def files(self, name: str, kind: str = "models") -> dict[str, bytes]:
        """The files of the last commit."""
        return self.repositories[f"{kind}/{name}"].commits[-1][1]


class Refused(Exception):
    """An answer other than 200: status, and the error code that the client reads from the headers."""


class Handler(BaseHTTPRequestHandler):
    """One request: find what the address means, answer in JSON or in bytes."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, method: str) -> None:
        address = urlsplit(self.path)
        self.query = parse_qs(address.query)
        path = unquote(address.path).strip("/")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append(f"{method} /{path}")
        given = self.server.spoil(lambda: self.made(method, path), method, path)
        if given is None:
            self.close_connection = True
            return
        status, headers, data = given
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if method != "HEAD":
            self.wfile.write(data)
            self.close_connection |= len(data) < int(headers.get("Content-Length", 0))

    def made(self, method: str, path: str) -> Answer:
        try:
            return self.route(method, path)
        except Refused as refused:
            status, code = refused.args
            return status, {"X-Error-Code": code, "X-Error-Message": code}, b""

    do_GET = lambda self: self.answer("GET")  # noqa: E731
    do_HEAD = lambda self: self.answer("HEAD")  # noqa: E731
    do_POST = lambda self: self.answer("POST")  # noqa: E731
    do_PUT = lambda self: self.answer("PUT")  # noqa: E731

    def route(self, method: str, path: str) -> Answer:
        if path == "api/repos/create":
            return self.create(json.loads(self.body))
        if path == "api/validate-yaml":
            return reply({"errors": [], "warnings": []})
        if path == "api/whoami-v2":
            self.authorise()
            return reply({"type": "user", "name": "somebody", "auth": {"accessToken": {"role": "write"}}})
        if match := re.fullmatch(r"blobs/(\w+)", path):
            if hashlib.sha256(self.body).hexdigest() != match[1]:
                raise Refused(400, "BlobMismatch")
            self.server.blobs[match[1]] = self.body
            return reply({})
        if match := re.fullmatch(r"(datasets/|spaces/)?(\S+?/\S+?)\.git/info/lfs/objects/batch", path):
            return self.blobs_wanted()
        for kind, prefix in KINDS.items():
            if match := re.fullmatch(rf"api/{kind}/([^/]+/[^/]+)(?:/([\w-]+)(?:/(.+))?)?", path):
                return self.api(kind, *match.groups())
            if match := re.fullmatch(rf"{prefix}([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                return self.file(self.repository(kind, match[1]), match[2], match[3])
        raise Refused(404, "RepoNotFound")

    def authorise(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "RepoNotFound")

    def repository(self, kind: str, name: str) -> Repository:
        repository = self.server.repositories.get(f"{kind}/{name}")
        if repository is None:
            raise Refused(404, "RepoNotFound")
        if repository.private:
            self.authorise()
        return repository

    def create(self, asked: dict) -> Answer:
        self.authorise()
        kind = asked.get("type", "model") + "s"
        name = f"{asked.get('organization') or 'somebody'}/{asked['name']}"
        url = {"url": f"{self.server.endpoint}/{KINDS[kind]}{name}", "name": name}
        if f"{kind}/{name}" in self.server.repositories:
            return reply(url, 409)
        repository = Repository(bool(asked.get("private")) or asked.get("visibility") == "private")
        repository.commit({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        self.server.repositories[f"{kind}/{name}"] = repository
        return reply(url)

    def blobs_wanted(self) -> Answer:
        self.authorise()
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            upload = {"upload": {"href": f"{self.server.endpoint}/blobs/{wanted['oid']}"}}
            objects.append(wanted | ({} if wanted["oid"] in self.server.blobs else {"actions": upload}))
        return reply({"transfer": "basic", "objects": objects})

    def api(self, kind: str, name: str, verb: str | None, rest: str | None) -> Answer:
        repository = self.repository(kind, name)
        if verb == "preupload":
            asked = json.loads(self.body)["files"]
            large = (".safetensors", ".parquet", ".png", ".npz", ".bin")
            modes = {True: "lfs", False: "regular"}
            files = [{"path": one["path"], "uploadMode": modes[one["path"].endswith(large)]} for one in asked]
            return reply({"files": [file | {"shouldIgnore": False} for file in files]})
        if verb == "commit":
            self.authorise()
            sha = repository.commit(self.committed(repository))
            url = f"{self.server.endpoint}/{KINDS[kind]}{name}/commit/{sha}"
            return reply({"commitOid": sha, "commitUrl": url, "hookOutput": "", "success": True})
        if verb == "auth-check":
            self.authorise()
            return reply({})
        if verb == "tag":
            self.authorise()
            repository.tags[json.loads(self.body)["tag"]] = repository.at(rest)[0]
            return reply({})
        if verb == "refs":
            return reply(
                {
                    "branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": repository.at("main")[0]}],
                    "tags": [
                        {"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": sha}
                        for tag, sha in repository.tags.items()
                    ],
                    "converts": [],
                }
            )
        revision, _, folder = (rest or "main").partition("/")
        found = repository.at(revision)
        if found is None:
            raise Refused(404, "RevisionNotFound")
        sha, files = found
        if verb == "tree":
            return reply(tree(files, folder, deep="true" in self.query.get("recursive", ["false"])[0].lower()))
        if verb == "paths-info":
            paths = parse_qs(self.body.decode())["paths"] if b"paths=" in self.body else json.loads(self.body)["paths"]
            return reply([entry(path, files[path]) for path in paths if path in files])
        if verb in (None, "revision"):
            siblings = [{"rfilename": path} for path in sorted(files)]
            about = {"id": name, "sha": sha, "private": repository.private, "siblings": siblings, "tags": []}
            return reply(about | {"downloads": 0, "likes": 0, "gated": False, "disabled": False})
        raise Refused(404, "EntryNotFound")

    def committed(self, repository: Repository) -> dict[str, bytes]:
        """The files after the operations of a commit, a JSON line each."""
        files = dict(repository.at("main")[1])
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        return files

    def file(self, repository: Repository, revision: str, path: str) -> Answer:
        found = repository.at(revision)
        if found is None:
            raise Refused(404, "RevisionNotFound")
        sha, files = found
        if path not in files:
            raise Refused(404, "EntryNotFound")
        data = files[path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        headers["X-Linked-Size"] = headers["Content-Length"] = len(data)
        if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or ""):
            first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
            headers |= {"Content-Range": f"bytes {first}-{last}/{len(data)}", "Content-Length": last + 1 - first}
            return 206, headers, data[first : last + 1]
        return 200, headers, data


def tree(files: dict[str, bytes], folder: str, deep: bool) -> list[dict]:
    """What lies in a folder, `deep` with what lies in the folders below."""
    inside = {path: data for path, data in sorted(files.items()) if not folder or path.startswith(f"{folder}/")}
    start = len(folder) + 1 if folder else 0
    folders = {path[: path.index("/", start)] for path in inside if "/" in path[start:]}
    entries = [entry(path, data) for path, data in inside.items() if deep or "/" not in path[start:]]
    return entries + [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)]


def entry(path: str, data: bytes) -> dict:
    return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


def reply(value, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


def environment(hub: LoopbackHub, home, **more) -> dict:
    """The environment of a process that knows this Hub alone.

    Settings are the default ones apart from the address, the token and Xet, whose protocol this Hub does not speak.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    ours = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    return inherited | ours | more
