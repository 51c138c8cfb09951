"""One message over HTTP: as raw JSON, or as Discord takes it. No queue, no repetition.

Addresses and tokens are secrets: they stay inside this module and appear in no error.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from simpletuner.config.webhook_file import Webhook
from simpletuner.events.sinks.webhook_messages import Message

DISCORD_LETTERS = 2000
DISCORD_BYTES = 8_000_000  # of all files of a message; a server's own limit may be higher, never lower
RAW_BYTES = 32_000_000
LONGEST_WAIT_SECONDS = 120.0
_REPLY_BYTES = 65_536
_UPLOAD_BYTES_PER_SECOND = 50_000  # a slow line; the time limit grows with the message
_MIME_TYPES = {".png": "image/png", ".mp4": "video/mp4"}


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        status: HTTP status; 0 when there was no answer.
        reason: Why not, for people; empty when it was taken.
        wait_seconds: How long the receiver asks to wait; 0 when it does not say.
    """

    status: int
    reason: str = ""
    wait_seconds: float = 0.0

    @property
    def is_taken(self) -> bool:
        return 200 <= self.status < 300

    @property
    def is_worth_another_try(self) -> bool:
        """Whether the same message may be taken later."""
        return self.status == 0 or self.status in (408, 425, 429) or self.status >= 500

    @property
    def ends_the_webhook(self) -> bool:
        """Whether nothing will ever be taken at this address with this token."""
        return self.status in (401, 403, 404, 410)


def send(webhook: Webhook, message: Message, identity: str, prefix: str, *, seconds: float, with_media: bool) -> Reply:
    """Post one message.

    Args:
        webhook: The receiver.
        message: What to say.
        identity: Stays the same when a message is sent again, so that a receiver can tell.
        prefix: What a chat reads before each message.
        seconds: How long connecting and each read may take; large messages get more.
        with_media: Whether files go along.
    """
    media = [path for path in message.media if path.is_file()] if with_media else []
    if webhook.webhook_type == "discord":
        payload, kind = _discord_form(message, prefix, media)
    else:
        payload, kind = _raw_json(message, identity, media), "application/json"
    headers = {"Content-Type": kind, "User-Agent": "simpletuner", "Idempotency-Key": identity}
    if webhook.auth_token and webhook.webhook_type == "raw":
        headers["X-API-Key"] = webhook.auth_token
    limit = seconds + len(payload) / _UPLOAD_BYTES_PER_SECOND
    return _post(webhook.url, payload, headers, limit, verified=not webhook.ssl_no_verify)


def _raw_json(message: Message, identity: str, media: Sequence[Path]) -> bytes:
    body: dict[str, Any] = {"id": identity, **message.body}
    videos = [path for path in _within(media, RAW_BYTES) if path.suffix != ".png"]
    stills = [path for path in media if path.suffix == ".png"]
    if videos:
        body["videos"] = [
            {"src": f"data:{_MIME_TYPES[path.suffix]};base64,{_encoded(path)}", "mime_type": _MIME_TYPES[path.suffix]}
            for path in videos
        ]
    if stills and not videos:
        body["images"] = [_encoded(path) for path in _within(stills, RAW_BYTES)]
    return json.dumps(body, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


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


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry token and message to an address nobody has named."""

    def redirect_request(self, *words: Any, **more: Any) -> None:
        return None


def _post(url: str, payload: bytes, headers: Mapping[str, str], seconds: float, *, verified: bool) -> Reply:
    try:
        opener = _opener(verified)
        request = urllib.request.Request(url, payload, dict(headers), method="POST")  # noqa: S310 - checked when read
        with opener.open(request, timeout=seconds) as reply:
            reply.read(_REPLY_BYTES)
            return Reply(reply.status)
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, f"HTTP {error.code}", _asked_wait(error))
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Reply(0, _reason(error))


@cache
def _opener(verified: bool) -> urllib.request.OpenerDirector:
    context = ssl.create_default_context()
    if not verified:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return urllib.request.build_opener(_NoRedirects, urllib.request.HTTPSHandler(context=context))


def _asked_wait(error: urllib.error.HTTPError) -> float:
    """Seconds by the header, or by Discord's own JSON."""
    text = error.headers.get("Retry-After", "")
    if not text and error.code == 429:
        text = _retry_after(error)
    try:
        return min(max(float(text), 0.0), LONGEST_WAIT_SECONDS)
    except ValueError:
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
        return "no answer in time"
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {cause.verify_message}"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return type(cause).__name__
