"""Files of the web, kept in a folder: fetched once, resumed where a connection broke, checked by length.

A file's name is the hash of its whole URL. Beside it lies a record of what the server said, so that
a rest is only ever added to the same content. Passwords and queries of URLs appear in no message
and in no file.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import re
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from time import time
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from filelock import FileLock

from simpletuner.core.files import commit_file, told_as_user_error, write_json_atomic
from simpletuner.data.backends.patience import TRANSIENT_STATUSES, MissingError, Patience, UnreachableError

TIMEOUT_SECONDS = 60
PIECE_BYTES = 1 << 18
SUFFIX = re.compile(r"(?<=[^/])\.[A-Za-z0-9]{1,8}$")
# How a connection breaks while an answer is read.
BROKEN = (TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException)
CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


@dataclass(frozen=True)
class WebFile:
    """What a server said of a file.

    Attributes:
        size_bytes: Length; -1 if it did not say.
        entity_tag: Its strong or weak entity tag; empty if none.
        modified: Its time of change in the server's words; empty if none.
    """

    size_bytes: int
    entity_tag: str = ""
    modified: str = ""

    @property
    def version(self) -> str:
        """Text that changes with the content, as far as the server lets us know."""
        return self.entity_tag or self.modified or f"length {self.size_bytes}"

    @property
    def same_content(self) -> str:
        """What tells the server that we want more of the same (RFC 9110, 13.1.5); empty if it gave no such mark."""
        return self.modified if self.entity_tag.startswith("W/") else self.entity_tag or self.modified


class Downloads:
    """A folder of fetched files; several threads and processes may share it."""

    def __init__(self, folder: Path, patience: Patience = Patience()) -> None:  # noqa: B008 - frozen
        self._folder = folder
        self._patience = patience
        # Only these two protocols: a redirect cannot lead to a file of this machine.
        self._opener = urllib.request.build_opener(_StrictRedirects)

    def kept(self, url: str) -> tuple[Path, WebFile] | None:
        """The file of `url` and what is known of it, None if it is not here as a whole.

        Raises:
            UnreachableError: If it is no URL.
        """
        path = self._path(url)
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return None
        facts = _read_record(_record_path(path))
        return (path, facts) if facts is not None and facts.size_bytes == size else None

    def look(self, url: str) -> WebFile:
        """Size and version of `url`: of the kept file, else as its server says, else by fetching it.

        Raises:
            UnreachableError: If it cannot be had.
        """
        kept = self.kept(url)
        if kept is None:
            facts = self._patience.retry(lambda: self._ask(url))
            if facts.size_bytes >= 0:
                return facts
            self.fetch(url)
            kept = self.kept(url)
            assert kept is not None, "a fetched file is there"
        return kept[1]

    def fetch(self, url: str) -> Path:
        """The file of `url` on this disk, downloaded if it is not there yet.

        Raises:
            UnreachableError: If it cannot be had; what has come is kept and continued next time.
            UserError: If the disk is full or the folder cannot be written.
        """
        kept = self.kept(url)
        if kept is not None:
            return kept[0]
        path = self._path(url)
        with told_as_user_error(path):
            for folder in (path.parent, self._lock_path(path).parent):
                folder.mkdir(parents=True, exist_ok=True)
            with FileLock(str(self._lock_path(path))):
                kept = self.kept(url)  # by another worker, while we waited
                if kept is None:
                    self._fetch(url, path)
        return path

    def _path(self, url: str) -> Path:
        digest = hashlib.sha256(url.encode()).hexdigest()
        try:
            parts = urlsplit(url)
        except ValueError:
            raise UnreachableError("not a valid URL") from None
        if not parts.hostname:
            raise UnreachableError("not a valid URL, it names no host")
        found = SUFFIX.search(parts.path)
        return Path(f"{self._folder}/{digest[:2]}/{digest}{found[0].lower() if found else ''}")

    def _lock_path(self, path: Path) -> Path:
        return self._folder / ".locks" / path.name[:3]  # few files share a lock, and there are few locks

    def _fetch(self, url: str, path: Path) -> None:
        """Attempts until the whole is there; they count from the beginning whenever one brought something new."""
        part, most, failures = _beside(path, ".part"), _size(_beside(path, ".part")), 0
        while True:
            try:
                self._attempt(url, path, part)
                break
            except UnreachableError as error:
                failures = failures + 1 if _size(part) <= most else 1
                most = max(most, _size(part))
                if not error.transient:
                    part.unlink(missing_ok=True)  # it may be what is refused: a rest of something else
                if not error.transient or failures >= self._patience.attempts:
                    raise
                self._patience.pause(failures, error)
        commit_file(part, path)

    def _attempt(self, url: str, path: Path, part: Path) -> None:
        """One attempt: ask for what is missing and write it; afterwards `part` is whole."""
        record = _record_path(path)
        known, have = _read_record(record), _size(part)
        if known is None or not known.same_content or have > known.size_bytes:
            have = 0
        elif 0 < have == known.size_bytes:
            return
        headers = {"Range": f"bytes={have}-", "If-Range": known.same_content} if have and known else {}
        with self._open(url, "GET", headers) as answer:
            facts = _facts_of(answer)
            begin = have if answer.status == 206 and known and facts.same_content == known.same_content else 0
            if answer.status == 206 and (begin == 0 or _begin_of(answer) != begin):
                raise UnreachableError("the server sent another part than asked for")
            if begin == 0:
                write_json_atomic(record, asdict(facts))
            length = _copy(answer, part, begin, facts.size_bytes)
        if facts.size_bytes < 0:
            write_json_atomic(record, asdict(WebFile(length, facts.entity_tag, facts.modified)))

    def _ask(self, url: str) -> WebFile:
        """HEAD; where that is refused (signed URLs allow one method) a GET of the first byte."""
        with contextlib.suppress(UnreachableError):
            with self._open(url, "HEAD", {}) as answer:
                facts = _facts_of(answer)
            if facts.size_bytes >= 0:
                return facts
        with self._open(url, "GET", {"Range": "bytes=0-0"}) as answer:
            return _facts_of(answer)

    @contextlib.contextmanager
    def _open(self, url: str, method: str, headers: dict[str, str]) -> Iterator[Any]:
        plain, authorisation = _without_password(url)
        # The bytes of the file itself are wanted, so that ranges and lengths are those of the file.
        sent = {"User-Agent": "simpletuner", "Accept-Encoding": "identity", **authorisation, **headers}
        request = urllib.request.Request(plain, method=method, headers=sent)  # noqa: S310 - see `_StrictRedirects`
        host = urlsplit(plain).netloc
        try:
            with self._opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
                yield answer
        except urllib.error.HTTPError as error:
            with error:
                raise _refused(error, host) from None  # its text may hold the whole URL
        except urllib.error.URLError as error:
            raise _not_reached(error.reason, host) from None
        except BROKEN as error:
            raise UnreachableError(f"the connection to {host} broke ({type(error).__name__})", transient=True) from None
        except ValueError:  # a port that is no number, characters that no URL may have
            raise UnreachableError(f"not a valid URL of {host}") from None


class _StrictRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only, and takes no password to another host."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise urllib.error.HTTPError(req.full_url, code, "redirect to another protocol", headers, fp)
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            following.remove_header("Authorization")
        return following


def _refused(error: urllib.error.HTTPError, host: str) -> UnreachableError:
    reason = f"{host} answers {error.code} {http.client.responses.get(error.code, '')}".strip()
    if error.code in (404, 410):
        return MissingError(reason)
    wait = _retry_after(error.headers.get("Retry-After", "") if error.headers else "")
    return UnreachableError(reason, transient=error.code in TRANSIENT_STATUSES, wait_seconds=wait)


def _not_reached(reason: Any, host: str) -> UnreachableError:
    """A name that does not exist and a certificate that is wrong stay so; other faults of the network may pass."""
    fixed = isinstance(reason, ssl.SSLCertVerificationError) or (
        isinstance(reason, socket.gaierror) and reason.errno == socket.EAI_NONAME
    )
    told = (reason.strerror if isinstance(reason, OSError) else "") or type(reason).__name__
    return UnreachableError(f"{host} cannot be reached ({told})", transient=isinstance(reason, OSError) and not fixed)


def _retry_after(value: str) -> float:
    """Seconds of a Retry-After header, which gives a number or a date; 0 if it gives neither."""
    with contextlib.suppress(ValueError, OverflowError):
        return max(0.0, float(value)) if value.strip().isdigit() else parsedate_to_datetime(value).timestamp() - time()
    return 0.0


def _begin_of(answer: Any) -> int:
    found = CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
    return int(found[1]) if found and found[1] else -1


def _facts_of(answer: Any) -> WebFile:
    """Facts of the whole file, also from an answer that holds a part of it."""
    length = answer.headers.get("Content-Length", "")
    if answer.status == 206:
        found = CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
        length = found[3] if found else ""
    size = int(length) if length.isdigit() else -1
    return WebFile(size, answer.headers.get("ETag", ""), answer.headers.get("Last-Modified", ""))


def _copy(answer: Any, part: Path, begin: int, total: int) -> int:
    """Write what comes behind byte `begin` of `part`; gives the length of the whole."""
    with part.open("r+b" if begin else "wb") as target:
        target.seek(begin)
        target.truncate()
        while True:
            piece = answer.read(PIECE_BYTES)
            if not piece:
                break
            target.write(piece)
        length = target.tell()
    if 0 <= total != length:
        raise UnreachableError(f"{length} of {total} bytes came", transient=length < total)
    return length


def _without_password(url: str) -> tuple[str, dict[str, str]]:
    """`url` without fragment, name and password; these as a header."""
    parts = urlsplit(url)
    account, _, host = parts.netloc.rpartition("@")
    plain = urlunsplit((parts.scheme, host, parts.path.replace(" ", "%20"), parts.query.replace(" ", "%20"), ""))
    if not account:
        return plain, {}
    return plain, {"Authorization": "Basic " + base64.b64encode(unquote(account).encode()).decode()}


def _record_path(path: Path) -> Path:
    return _beside(path, ".json")


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _read_record(path: Path) -> WebFile | None:
    try:
        return WebFile(**json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
