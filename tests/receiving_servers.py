"""Small real servers that take what a run sends out: posts of webhooks, and uploads to a Hub."""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import json
import re
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass
class Answer:
    """What a request gets instead of its proper answer; `stall` seconds pass first."""

    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    stall: float = 0.0


@dataclass
class Post:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    status: int = 0  # what it was answered with

    @property
    def document(self) -> Any:
        return json.loads(self.body)


class Desk:
    """What a server has received.

    Attributes:
        url: Its address.
        posts: All requests.
        answers: For the next requests, first come first served; then the proper ones.
        always: For every request, when set.
        files: What was uploaded: "owner/name/path" -> content.
        commits: (repository, title, paths) of each commit.
        private: Repository -> whether it was made private.
        account: What the Hub says of whoever asks.
        read_only: Repositories that the token may not write to.
    """

    def __init__(self) -> None:
        self.url = ""
        self.posts: list[Post] = []
        self.answers: deque[Answer] = deque()
        self.always: Answer | None = None
        self.files: dict[str, bytes] = {}
        self.commits: list[tuple[str, str, list[str]]] = []
        self.private: dict[str, bool] = {}
        self.blobs: dict[str, bytes] = {}
        self.digests: dict[str, str] = {}
        self.account: dict[str, Any] = {"name": "tester", "orgs": [], "auth": {"accessToken": {"role": "write"}}}
        self.read_only: set[str] = set()

    @property
    def taken(self) -> list[Post]:
        """Requests that were answered with success."""
        return [post for post in self.posts if 200 <= post.status < 300]


class _Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    desk: Desk

    def log_message(self, *words: Any) -> None:
        pass

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        post = Post(self.command, self.path, dict(self.headers.items()), self.rfile.read(length))
        desk = self.desk
        given = desk.always or (desk.answers.popleft() if desk.answers else None)
        if given is not None and given.stall:
            time.sleep(given.stall)
        answer = given if given is not None and given.status else self.proper(post)
        post.status = answer.status
        desk.posts.append(post)
        with contextlib.suppress(ConnectionError):
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if "Content-Length" not in answer.headers:
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

    do_GET = do_PUT = do_HEAD = do_POST

    def proper(self, post: Post) -> Answer:
        return Answer()


class _Hub(_Receiver):
    """The part of the Hub's interface that makes repositories and takes commits, large files by LFS."""

    owner = "tester"

    def proper(self, post: Post) -> Answer:
        path = unquote(urlsplit(post.path).path)
        if path.startswith("/blob/"):
            self.desk.blobs[path.removeprefix("/blob/")] = post.body
            return Answer(200)
        if path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if post.headers.get("authorization") not in ("Bearer hf_canary",):
            return Answer(401)
        if path == "/api/whoami-v2":
            return _json(self.desk.account)
        if path == "/api/repos/create":
            wanted = post.document
            name = f"{wanted.get('organization') or self.owner}/{wanted['name']}"
            status = 409 if name in self.desk.private else 200
            self.desk.private.setdefault(name, bool(wanted.get("private") or wanted.get("visibility") == "private"))
            return _json({"url": f"{self.desk.url}/{name}", "name": name, "id": name}, status)
        return self.repository(path, post)

    def repository(self, path: str, post: Post) -> Answer:
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            names = [file["path"] for file in post.document["files"]]
            modes = ["regular" if name.endswith((".md", ".json")) else "lfs" for name in names]
            return _json({"files": [{"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": None}
                                    for name, mode in zip(names, modes, strict=True)]})  # fmt: skip
        if re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            objects = [{"oid": one["oid"], "size": one["size"]} for one in post.document["objects"]]
            for one in objects:
                if one["oid"] not in self.desk.blobs:
                    one["actions"] = {"upload": {"href": f"{self.desk.url}/blob/{one['oid']}"}}
            return _json({"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            return self.commit(found[1], [json.loads(line) for line in post.body.splitlines()])
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/auth-check/write)?", path):
            name = found[1]
            if name not in self.desk.private:
                return Answer(404, {"X-Error-Code": "RepoNotFound"}, b"{}")
            if found[2] and name in self.desk.read_only:
                return Answer(403, body=b"{}")
            held = [key.removeprefix(f"{name}/") for key in self.desk.files if key.startswith(f"{name}/")]
            return _json({"id": name, "private": self.desk.private[name], "tags": [], "downloads": 0, "likes": 0,
                          "siblings": [{"rfilename": one} for one in held]})  # fmt: skip
        return Answer(404, body=b"{}")

    def commit(self, name: str, lines: list[dict[str, Any]]) -> Answer:
        title, paths = "", []
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                title = value["summary"]
            elif line["key"] == "file":
                self.desk.files[f"{name}/{value['path']}"] = base64.b64decode(value["content"])
                paths.append(value["path"])
            elif line["key"] == "lfsFile":
                content = self.desk.blobs[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                self.desk.files[f"{name}/{value['path']}"] = content
                paths.append(value["path"])
        self.desk.commits.append((name, title, paths))
        commit = f"{len(self.desk.commits):040d}"
        return _json({"commitUrl": f"{self.desk.url}/{name}/commit/{commit}", "commitOid": commit, "success": True})


class _Store(_Receiver):
    """The part of S3's interface that looks at a bucket called "films" and puts objects into it."""

    bucket = "films"

    def proper(self, post: Post) -> Answer:
        headers = {name.lower(): value for name, value in post.headers.items()}
        bucket, _, key = unquote(urlsplit(post.path).path).lstrip("/").partition("/")
        if "Credential=AKIDTESTING/" not in headers.get("authorization", ""):
            return _fault(403, "InvalidAccessKeyId", post)
        if bucket != self.bucket:
            return _fault(404, "NoSuchBucket", post)
        if post.method == "HEAD" and key in self.desk.files:
            told = {"x-amz-meta-sha256": self.desk.digests[key], "Content-Length": str(len(self.desk.files[key]))}
            return Answer(200, told)
        if post.method == "HEAD":
            return Answer(404 if key else 200)
        body = _unchunked(post.body) if "x-amz-decoded-content-length" in headers else post.body
        self.desk.files[key], self.desk.digests[key] = body, headers["x-amz-meta-sha256"]
        return Answer(200)


def _fault(status: int, code: str, post: Post) -> Answer:
    body = b"" if post.method == "HEAD" else f"<Error><Code>{code}</Code></Error>".encode()
    return Answer(status, {"Content-Type": "application/xml"}, body)


def _unchunked(body: bytes) -> bytes:
    """The content of a body in the chunks of AWS's own making; its checksum behind them is left out."""
    content = b""
    while body:
        line, _, body = body.partition(b"\r\n")
        size = int(line.split(b";")[0] or b"0", 16)
        if not size:
            break
        content, body = content + body[:size], body[size + 2 :]
    return content


def _json(value: Any, status: int = 200) -> Answer:
    return Answer(status, {"Content-Type": "application/json"}, json.dumps(value).encode())


@contextlib.contextmanager
def _running(kind: type[_Receiver], secured: ssl.SSLContext | None = None) -> Iterator[Desk]:
    desk = Desk()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (kind,), {"desk": desk}))
    if secured is not None:
        # A handshake that fails is then an affair of the connection, not of the server.
        server.socket = secured.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        server.handle_error = lambda *words: None  # type: ignore[method-assign]
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    desk.url = f"http{'s' if secured else ''}://127.0.0.1:{server.server_address[1]}"
    try:
        yield desk
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _self_signed(folder: Path) -> Path:
    """A certificate that nobody vouches for, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    path = folder / "certificate.pem"
    plain = serialization.NoEncryption()
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


def secure_webhook_server(folder: Path) -> contextlib.AbstractContextManager[Desk]:
    """Takes posts over TLS, with a certificate that nobody vouches for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_self_signed(folder))
    return _running(_Receiver, context)


def webhook_server() -> contextlib.AbstractContextManager[Desk]:
    """Takes posts and says 204."""
    return _running(_Receiver)


def upload_server() -> contextlib.AbstractContextManager[Desk]:
    """A Hub for the token "hf_canary" of the user "tester"."""
    return _running(_Hub)


def store_server() -> contextlib.AbstractContextManager[Desk]:
    """An object store with the bucket "films" for the access key "AKIDTESTING"."""
    return _running(_Store)
