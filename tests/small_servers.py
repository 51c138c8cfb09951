"""Small real servers on this machine: files of the web, a fake Hub, and a go-between that makes faults."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import re
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Fault:
    """What happens to one request instead of an answer.

    Attributes:
        status: Answer with this status; 0 answers properly.
        headers: Sent with it.
        cut_after: Break the connection after so many bytes of the body; -1 sends all.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int = -1


@dataclass
class Seen:
    """One request as it came, and how many bytes of body went back."""

    method: str
    path: str
    headers: dict[str, str]
    sent_bytes: int = 0


class Place:
    """What a server gives out, and what it was asked.

    Attributes:
        files: Path ("/a/b.mp4") -> content.
        faults: Faults of the next requests for a file, first come first served.
        seen: All requests.
        with_tags: Whether entity tags are sent.
        with_ranges: Whether ranges are honoured.
        with_head: Whether HEAD is allowed.
        with_length: Whether the length is told.
    """

    def __init__(self) -> None:
        self.url = ""
        self.files: dict[str, bytes] = {}
        self.faults: deque[Fault] = deque()
        self.seen: list[Seen] = []
        self.with_tags = self.with_ranges = self.with_head = self.with_length = True

    @property
    def sent_bytes(self) -> int:
        return sum(request.sent_bytes for request in self.seen)

    def requests(self, method: str = "GET") -> list[Seen]:
        return [request for request in self.seen if request.method == method]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    place: Place

    def log_message(self, *words: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        self.request_seen = Seen(self.command, self.path, dict(self.headers.items()))
        self.place.seen.append(self.request_seen)
        fault = self.place.faults.popleft() if self.place.faults else Fault()
        with contextlib.suppress(ConnectionError):
            if fault.status:
                self.answer(fault.status, b"", fault.headers)
            else:
                self.give(fault)

    def give(self, fault: Fault) -> None:
        self.give_file(unquote(urlsplit(self.path).path), fault, {})

    def give_file(self, path: str, fault: Fault, headers: dict[str, str]) -> None:
        content = self.place.files.get(path)
        if content is None:
            return self.answer(404, b"", {})
        if self.command == "HEAD" and not self.place.with_head:
            return self.answer(403, b"", {})
        tag = '"' + hashlib.md5(content).hexdigest() + '"'
        headers = {**headers, **({"ETag": tag} if self.place.with_tags else {})}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        if not wanted or not self.place.with_ranges or (condition and condition != tag):
            return self.answer(200, content, {"Accept-Ranges": "bytes", **headers}, fault)
        first = int(wanted[1])
        last = min(int(wanted[2] or len(content) - 1), len(content) - 1)
        if first >= len(content):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return self.answer(206, content[first : last + 1], headers, fault)

    def answer(self, status: int, body: bytes, headers: dict[str, str], fault: Fault | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.place.with_length or self.command == "HEAD":
            self.send_header("Content-Length", str(len(body)))
        else:
            self.close_connection = True
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = len(body) if fault is None or fault.cut_after < 0 else fault.cut_after
        self.request_seen.sent_bytes += min(cut, len(body))  # before the other side can have seen the last of them
        self.wfile.write(body[:cut])
        if cut < len(body):
            self.close_connection = True

    def answer_json(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})


class _Hub(_Handler):
    """The part of the Hub's interface that reads a data set repository with one commit."""

    def give(self, fault: Fault) -> None:
        path = unquote(urlsplit(self.path).path)
        found = re.fullmatch(
            r"(?:/api)?/datasets/([^/]+/[^/]+?)(?:/(revision|tree|paths-info|resolve)/([^/]+)/?(.*))?", path
        )
        if not found or not any(name.startswith(f"/{found[1]}/") for name in self.place.files):
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        repository, action, revision, rest = found.groups()
        if revision not in (None, "main", COMMIT):
            return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        tree = [self._entry(name, repository) for name in self.place.files if name.startswith(f"/{repository}/")]
        if action == "resolve":
            if f"/{repository}/{rest}" not in self.place.files:
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return self.give_file(f"/{repository}/{rest}", fault, {"X-Repo-Commit": COMMIT})
        if action == "tree":
            return self.answer_json(self._below(rest, tree, "recursive=true" in self.path.lower()))
        if action == "paths-info":
            return self.answer_json([entry for entry in tree if entry["path"] in self.body.decode()])
        siblings = [{"rfilename": entry["path"]} for entry in tree]
        return self.answer_json({"id": repository, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})

    def _below(self, folder: str, tree: list[dict[str, Any]], recursive: bool) -> list[dict[str, Any]]:
        start = f"{folder}/" if folder else ""
        found = {}
        for entry in tree:
            if entry["path"].startswith(start):
                name, slash, _ = entry["path"][len(start) :].partition("/")
                if recursive or not slash:
                    found[entry["path"]] = entry
                else:
                    found[start + name] = {"type": "directory", "path": start + name, "size": 0, "oid": "0" * 40}
        return list(found.values())

    def _entry(self, name: str, repository: str) -> dict[str, Any]:
        content = self.place.files[name]
        digest = hashlib.sha1(content).hexdigest()
        return {"type": "file", "path": name[len(repository) + 2 :], "size": len(content), "oid": digest}


class _GoBetween(_Handler):
    """Hands every request on to another server."""

    target = ""

    def give(self, fault: Fault) -> None:
        connection = http.client.HTTPConnection(self.target, timeout=30)
        try:
            connection.request(self.command, self.path, self.body, dict(self.headers.items()))
            reply = connection.getresponse()
            body = reply.read()
            headers = {k: v for k, v in reply.getheaders() if k.lower() not in ("connection", "transfer-encoding")}
            length = headers.pop("Content-Length", None)
            if self.command == "HEAD" and length is not None:
                self.send_response(reply.status)
                for name, value in {**headers, "Content-Length": length}.items():
                    self.send_header(name, value)
                return self.end_headers()
            return self.answer(reply.status, body, headers, fault)
        finally:
            connection.close()


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def _running(kind: type[_Handler], **attributes: Any) -> Iterator[Place]:
    place = Place()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (kind,), {"place": place, **attributes}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    place.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield place
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def web_server() -> contextlib.AbstractContextManager[Place]:
    """Files of the web; `files` has their paths."""
    return _running(_Handler)


def hub_server() -> contextlib.AbstractContextManager[Place]:
    """A Hub; `files` has "/owner/name/path"."""
    return _running(_Hub)


def go_between(target: str) -> contextlib.AbstractContextManager[Place]:
    """In front of the server at `target` ("127.0.0.1:9000"); counts bytes and makes faults."""
    return _running(_GoBetween, target=target)
