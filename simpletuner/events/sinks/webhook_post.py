"""One message over HTTP: as raw JSON, or as Discord takes it. No queue, no repetition.

Addresses and tokens are secrets: they stay inside this module and appear in no error. Proxies and
certificates of the environment (HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE) are respected.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import http.client
import io
import json
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any

from PIL import Image

from simpletuner.config.sources import process_environment
from simpletuner.config.webhook_file import Webhook
from simpletuner.events.lines import encode_line
from simpletuner.events.sinks.webhook_messages import Message

DISCORD_LETTERS = 2000
DISCORD_BYTES = 8_000_000  # of all files of a message; a server's own limit may be higher, never lower
RAW_BYTES = 32_000_000
LONGEST_WAIT_SECONDS = 120.0
TOO_LATE = "no answer in time"
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")  # where OpenSSL looks instead of its usual place
_REPLY_BYTES = 65_536
_UPLOAD_BYTES_PER_SECOND = 50_000  # a slow line; the time limit grows with the message
_MIME_TYPES = {".png": "image/png", ".mp4": "video/mp4", ".gif": "image/gif"}


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        status: HTTP status; 0 when there was no answer.
        reason: Why not, for people; empty when it was taken.
        wait_seconds: How long the receiver asks to wait before the next message; 0 when it does not say.
        is_unclear: Whether the whole message went out and no answer came: it may or may not have arrived.
    """

    status: int
    reason: str = ""
    wait_seconds: float = 0.0
    is_unclear: bool = False

    @property
    def is_taken(self) -> bool:
        return 200 <= self.status < 300

    @property
    def is_worth_another_try(self) -> bool:
        """Whether the same message may be taken later."""
        return self.status == 0 or self.status in (408, 425, 429) or self.status >= 500

    @property
    def is_refusal(self) -> bool:
        """Whether the receiver itself failed over this message; not a gateway before it, and not for being busy."""
        return self.status >= 500 and self.status not in (502, 503, 504)

    @property
    def ends_the_webhook(self) -> bool:
        """Whether nothing will ever be taken at this address with this token."""
        return self.status in (401, 403, 404, 410)


@dataclass(frozen=True)
class Limits:
    """Seconds for connecting, and from then on until the answer is complete; large messages get more."""

    connect: float
    answer: float


def send(
    webhook: Webhook,
    message: Message,
    identity: str,
    prefix: str,
    limits: Limits,
    *,
    with_media: bool,
    is_repeat: bool = False,
) -> Reply:
    """Post one message.

    Args:
        webhook: The receiver.
        message: What to say.
        identity: Stays the same when a message is sent again, so that a receiver can tell.
        prefix: What a chat reads before each message.
        limits: How long it may take.
        with_media: Whether files go along.
        is_repeat: Whether it may have arrived before; raw receivers are told.
    """
    media = [path for path in message.media if path.is_file()] if with_media else []
    url = webhook.url
    if webhook.webhook_type == "discord":
        payload, kind = _discord_form(message, prefix, media)
        # Without it Discord answers before it knows whether the message can be kept.
        url += ("&" if "?" in url else "?") + "wait=true"
    else:
        payload, kind = _raw_json(message, identity, media, is_repeat), "application/json"
    headers = {"Content-Type": kind, "User-Agent": "simpletuner", "Idempotency-Key": identity}
    if webhook.auth_token and webhook.webhook_type == "raw":
        headers["X-API-Key"] = webhook.auth_token
    limits = Limits(limits.connect, limits.answer + len(payload) / _UPLOAD_BYTES_PER_SECOND)
    request = urllib.request.Request(url, payload, headers, method="POST")  # noqa: S310 - checked when read
    return _exchange(request, limits, verified=not webhook.ssl_no_verify)


def ask(webhook: Webhook, limits: Limits) -> Reply:
    """Whether anybody answers at the address; sends nothing."""
    request = urllib.request.Request(webhook.url, headers={"User-Agent": "simpletuner"})  # noqa: S310
    return _exchange(request, limits, verified=not webhook.ssl_no_verify)


def _raw_json(message: Message, identity: str, media: Sequence[Path], is_repeat: bool) -> bytes:
    body: dict[str, Any] = {"id": identity, **message.body}
    if is_repeat:
        body["is_repeat"] = True
    videos = [path for path in _within(media, RAW_BYTES) if path.suffix != ".png"]
    stills = [path for path in media if path.suffix == ".png"]
    if videos:
        body["videos"] = [
            {"src": f"data:{_MIME_TYPES[path.suffix]};base64,{_encoded(path)}", "mime_type": _MIME_TYPES[path.suffix]}
            for path in videos
        ]
    if stills and not videos:
        body["images"] = [_encoded(path) for path in _within(stills, RAW_BYTES)]
    elif videos and videos[0].suffix == ".gif":
        body["images"] = [base64.b64encode(_first_frame(videos[0])).decode("ascii")]
    return encode_line(body)


def _discord_form(message: Message, prefix: str, media: Sequence[Path]) -> tuple[bytes, str]:
    """(body, content type); the poster goes only where the video is too large."""
    videos = [path for path in media if path.suffix != ".png"]
    chosen = _within(videos, DISCORD_BYTES) or _within([p for p in media if p.suffix == ".png"], DISCORD_BYTES)
    # A zero-width space keeps captions from calling everybody in the room.
    content = f"(`{prefix}`) {message.text}".replace("@everyone", "@\u200beveryone").replace("@here", "@\u200bhere")
    if len(content) > DISCORD_LETTERS:
        content = content[: DISCORD_LETTERS - 1] + "…"
    boundary = uuid.uuid4().hex
    parts = [_part(boundary, 'name="content"', "text/plain; charset=utf-8", content.encode("utf-8", "replace"))]
    for number, path in enumerate(chosen):
        word = "image" if path.suffix == ".png" else "video"
        where = f'name="file{number}"; filename="{word}{number}{path.suffix}"'
        parts.append(_part(boundary, where, _MIME_TYPES[path.suffix], path.read_bytes()))
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def _part(boundary: str, where: str, kind: str, content: bytes) -> bytes:
    head = f"--{boundary}\r\nContent-Disposition: form-data; {where}\r\nContent-Type: {kind}\r\n\r\n"
    return head.encode() + content + b"\r\n"


def _within(paths: Sequence[Path], limit_bytes: int) -> list[Path]:
    chosen, total = [], 0
    for path in paths:
        size = path.stat().st_size
        if total + size <= limit_bytes and path.suffix in _MIME_TYPES:
            chosen.append(path)
            total += size
    return chosen


def _first_frame(path: Path) -> bytes:
    """The first picture of an animation, as PNG."""
    target = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").save(target, "PNG")
    return target.getvalue()


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry token and message to an address nobody has named."""

    def redirect_request(self, *words: Any, **more: Any) -> None:
        return None


def _exchange(request: urllib.request.Request, limits: Limits, *, verified: bool) -> Reply:
    """Send a request and read the answer. Errors before the whole request was out come as `URLError`."""
    clock = _Clock(limits.answer)
    try:
        with _opener(clock, verified).open(request, timeout=limits.connect) as reply:
            reply.read(_REPLY_BYTES)
            if clock.has_run_out:  # what was read so far looks like an answer, but is only its beginning
                return Reply(0, TOO_LATE, is_unclear=True)
            return Reply(reply.status, wait_seconds=_rest(reply.headers))
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, f"HTTP {error.code}", _asked_wait(error))
    except (OSError, http.client.HTTPException, ValueError) as error:
        is_unclear = not isinstance(error, (urllib.error.URLError, ValueError))
        reason = TOO_LATE if clock.has_run_out else _reason(error)
        return Reply(0, reason, is_unclear=is_unclear)
    finally:
        clock.stop()


class _Clock:
    """Cuts a connection when its time is up, however slowly the other side keeps it alive."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self.has_run_out = seconds, False
        self._timer: threading.Timer | None = None

    def watch(self, connection: socket.socket) -> None:
        connection.settimeout(self._seconds)
        self._timer = threading.Timer(self._seconds, self._cut, (connection,))
        self._timer.daemon = True
        self._timer.start()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _cut(self, connection: socket.socket) -> None:
        self.has_run_out = True
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def _opener(clock: _Clock, verified: bool) -> urllib.request.OpenerDirector:
    class Plain(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            clock.watch(self.sock)

    class Secure(http.client.HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            clock.watch(self.sock)

    class PlainDoor(urllib.request.HTTPHandler):
        def http_open(self, request: urllib.request.Request) -> Any:
            return self.do_open(Plain, request)

    class SecureDoor(urllib.request.HTTPSHandler):
        def __init__(self) -> None:
            # Not its own: from Python 3.12 on that reads all certificates, for plain addresses too.
            urllib.request.AbstractHTTPHandler.__init__(self)

        def https_open(self, request: urllib.request.Request) -> Any:
            return self.do_open(
                Secure, request, context=_trust(verified, *map(process_environment().get, _CERTIFICATES))
            )

    return urllib.request.build_opener(_NoRedirects, PlainDoor, SecureDoor)


@functools.lru_cache(maxsize=4)
def _trust(verified: bool, *_: str | None) -> ssl.SSLContext:
    """Reading all certificates takes 50 ms of the processor; that is done once for each place they are read from."""
    context = ssl.create_default_context()
    if not verified:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _rest(headers: Any) -> float:
    """Seconds to wait after a message that used up what Discord allows for now."""
    if headers.get("X-RateLimit-Remaining") != "0":
        return 0.0
    try:
        return min(max(float(headers.get("X-RateLimit-Reset-After", "")), 0.0), LONGEST_WAIT_SECONDS)
    except ValueError:
        return 0.0


def _asked_wait(error: urllib.error.HTTPError) -> float:
    """Seconds by the header (a number or a date), or by Discord's own JSON."""
    text = error.headers.get("Retry-After", "")
    if not text and error.code == 429:
        text = _retry_after(error)
    try:
        seconds = float(text)
    except ValueError:
        seconds = _seconds_until(text)
    return min(max(seconds, 0.0), LONGEST_WAIT_SECONDS)


def _seconds_until(text: str) -> float:
    try:
        return parsedate_to_datetime(text).timestamp() - time.time()
    except (TypeError, ValueError):
        return 0.0


def _retry_after(reply: IO[bytes]) -> str:
    try:
        return str(json.loads(reply.read(_REPLY_BYTES))["retry_after"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return ""


def _reason(error: BaseException) -> str:
    """What went wrong without the address, which some of these errors quote."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return TOO_LATE
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {cause.verify_message}"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return type(cause).__name__
