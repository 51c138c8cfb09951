"""Webhooks (`webhook_config`): who is told what happens, as a file, an object or a list of objects.

Reads and checks; sending is somebody else's work. Addresses and tokens are secrets and are never
part of a message.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simpletuner.config.documents import is_comment
from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import Problem, Severity

KINDS = ("discord", "raw")
LEVELS = ("critical", "error", "warning", "info", "debug")
# Types of raw events, which `events` chooses from.
MESSAGE_TYPES = (
    "notification", "lifecycle.stage", "training.status", "training.checkpoint", "training.evaluation",
    "training.validation", "validation.image", "training.summary", "error",
)  # fmt: skip
URL_KEYS: Mapping[str, str] = {"discord": "webhook_url", "raw": "callback_url"}


class Webhook(BaseModel):
    """One receiver.

    `webhook_url` belongs to Discord and carries its key; `callback_url` receives raw events as JSON,
    with `auth_token` in the header `X-API-Key`. `events` keeps only messages of these types; None keeps all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    webhook_type: Literal["discord", "raw"]
    webhook_url: str | None = Field(None, repr=False)
    callback_url: str | None = Field(None, repr=False)
    message_prefix: str | None = None
    log_level: Literal["critical", "error", "warning", "info", "debug"] = "info"
    events: tuple[str, ...] | None = None
    ssl_no_verify: bool = False
    auth_token: str | None = Field(None, repr=False)

    @property
    def url(self) -> str:
        """Where events are sent; a secret."""
        return str(self.webhook_url if self.webhook_type == "discord" else self.callback_url)


@dataclass(frozen=True)
class WebhookReading:
    """What was found: the receivers without errors, and the findings."""

    webhooks: tuple[Webhook, ...]
    problems: tuple[Problem, ...]


def read_webhooks(value: Any, place: str) -> WebhookReading:
    """Check a decoded document: one object or a list of them.

    Args:
        value: The document.
        place: Where it stands, for messages.
    """
    entries = value if isinstance(value, list) else [value]
    webhooks: list[Webhook] = []
    problems: list[Problem] = []
    for number, entry in enumerate(entries, 1):
        where = f"{place}: entry {number}" if len(entries) > 1 else place
        if not isinstance(entry, dict):
            problems.append(
                Problem("a webhook is one object", "", 'Write {"webhook_type": "raw", "callback_url": "…"}', where)
            )
            continue
        content = {key: item for key, item in entry.items() if not is_comment(key)}
        found = list(_findings(content, where))
        try:
            webhooks.append(Webhook.model_validate(content))
        except ValidationError as error:
            found += _invalid(error, where, told=" ".join(problem.what for problem in found))
        problems += found
    return WebhookReading(tuple(webhooks), tuple(problems))


def _findings(entry: Mapping[str, Any], where: str) -> Iterator[Problem]:
    for key in entry:
        if key not in Webhook.model_fields:
            near = did_you_mean(key, list(Webhook.model_fields))
            yield Problem(
                f"unknown key '{key}'", f"Known: {', '.join(Webhook.model_fields)}", near or "Remove it", where
            )
    kind = entry.get("webhook_type")
    if kind not in KINDS:
        what = "webhook_type is missing" if kind is None else f"webhook_type = {str(kind)!r}"
        yield Problem(what, "It must be discord or raw", did_you_mean(str(kind), list(KINDS)) or 'Write "raw"', where)
        return
    needed = URL_KEYS[str(kind)]
    address = entry.get(needed)
    if not address:
        other = next((key for key in URL_KEYS.values() if key != needed and entry.get(key)), "")
        yield Problem(f"{needed} is missing", f"webhook_type {kind} needs it",
                      f"Rename {other}" if other else f'Add "{needed}"', where)  # fmt: skip
    elif not _is_address(address):
        yield Problem(f"{needed} is no web address", "It begins with https:// or http:// and names a host",
                      "Copy the whole address", where)  # fmt: skip
    level = entry.get("log_level")
    if level is not None and level not in LEVELS:
        yield Problem(f"log_level = {str(level)!r}", f"It must be one of: {', '.join(LEVELS)}",
                      did_you_mean(str(level), list(LEVELS)) or 'Write "info"', where)  # fmt: skip
    yield from _event_findings(entry.get("events"), where)
    if kind == "discord" and entry.get("auth_token"):
        yield Problem("auth_token has no effect with webhook_type discord", "The address carries the key",
                      "Remove it", where, Severity.WARNING)  # fmt: skip


def _event_findings(events: Any, where: str) -> Iterator[Problem]:
    if events is None:
        return
    known = ", ".join(MESSAGE_TYPES)
    if not isinstance(events, list) or not events:
        yield Problem("events is no list of message types", f"Known: {known}",
                      'Write for example ["training.checkpoint", "error"], or remove it to hear of everything',
                      where)  # fmt: skip
        return
    for name in events:
        if name not in MESSAGE_TYPES:
            yield Problem(f"events names {str(name)!r}", f"Known: {known}",
                          did_you_mean(str(name), list(MESSAGE_TYPES)) or "Remove it", where)  # fmt: skip


def _is_address(text: Any) -> bool:
    try:
        parts = urlsplit(text) if isinstance(text, str) else None
        return parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False


def _invalid(error: ValidationError, where: str, told: str) -> Iterator[Problem]:
    for finding in error.errors(include_input=False, include_url=False):
        key = ".".join(str(part) for part in finding["loc"])
        if key not in told and finding["type"] not in ("missing", "extra_forbidden"):
            yield Problem(f"{key} cannot be read", finding["msg"], "Correct the value", where)
