"""Places beside the Hub where results go (`publishing_config`): an object, a list of objects, or a file with either.

Reads and checks; uploading is somebody else's work. Keys are secrets and are never part of a message.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simpletuner.config.documents import is_comment
from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import Problem

BUILT = ("s3", "s3-compatible", "backblaze_b2", "b2")
BACKBLAZE = ("backblaze_b2", "b2")  # speaks S3, at an address that follows from its region
# Other names that are known, each with what to do instead.
OTHERS: Mapping[str, str] = {
    "azure_blob": "Let post_checkpoint_script call its own program (azcopy, rclone), or use s3 or the Hub",
    "azure": "Let post_checkpoint_script call its own program (azcopy, rclone), or use s3 or the Hub",
    "dropbox": "Let post_checkpoint_script call a program that knows it (rclone), or use s3 or the Hub",
}


class PublishingPlace(BaseModel):
    """One bucket of an S3-compatible store; what is absent the client library finds (environment, profile, role)."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    provider: str
    bucket: str = Field(min_length=3)
    region: str | None = None
    access_key: str | None = Field(None, repr=False)
    secret_key: str | None = Field(None, repr=False)
    endpoint_url: str | None = None
    base_path: str | None = None
    public_base_url: str | None = None

    @property
    def address(self) -> str | None:
        """Where the store is reached; None where the client library knows."""
        if self.endpoint_url is None and self.provider in BACKBLAZE:
            return f"https://s3.{self.region}.backblazeb2.com"
        return self.endpoint_url


@dataclass(frozen=True)
class PublishingReading:
    """What was found: the places without errors, and the findings."""

    places: tuple[PublishingPlace, ...]
    problems: tuple[Problem, ...]


def read_publishing(value: Any, place: str) -> PublishingReading:
    """Check a decoded document: one object or a list of them.

    Args:
        value: The document.
        place: Where it stands, for messages.
    """
    entries = value if isinstance(value, list) else [value]
    places: list[PublishingPlace] = []
    problems: list[Problem] = []
    for number, entry in enumerate(entries, 1):
        where = f"{place}: entry {number}" if len(entries) > 1 else place
        if not isinstance(entry, dict):
            problems.append(Problem("a place is one object", "", 'Write {"provider": "s3", "bucket": "…"}', where))
            continue
        content = {key: item for key, item in entry.items() if not is_comment(key)}
        found = list(_findings(content, where))
        if not found:
            try:
                places.append(PublishingPlace.model_validate(content))
            except ValidationError as error:
                found += [
                    Problem(
                        f"{'.'.join(map(str, item['loc']))} cannot be read", item["msg"], "Correct the value", where
                    )
                    for item in error.errors(include_input=False, include_url=False)
                ]
        problems += found
    return PublishingReading(tuple(places), tuple(problems))


def _findings(entry: Mapping[str, Any], where: str) -> Iterator[Problem]:
    kind = entry.get("provider")
    if str(kind) in OTHERS:
        yield Problem(
            f"provider = {kind!r}",
            "It speaks a protocol of its own, which this program does not",
            OTHERS[str(kind)],
            where,
        )
        return
    if kind not in BUILT:
        what = "provider is missing" if kind is None else f"provider = {str(kind)!r}"
        yield Problem(what, f"It must be one of: {', '.join(BUILT)}",
                      did_you_mean(str(kind), [*BUILT, *OTHERS]) or 'Write "s3"', where)  # fmt: skip
        return
    for key in entry:
        if key not in PublishingPlace.model_fields:
            near = did_you_mean(key, list(PublishingPlace.model_fields))
            yield Problem(f"unknown key '{key}'", f"Known: {', '.join(PublishingPlace.model_fields)}",
                          near or "Remove it", where)  # fmt: skip
    if kind in BACKBLAZE and not entry.get("region") and not entry.get("endpoint_url"):
        yield Problem("region is missing", "The address of a Backblaze bucket follows from its region",
                      'Add "region", for example "us-west-004", or "endpoint_url"', where)  # fmt: skip
    if not entry.get("bucket"):
        yield Problem("bucket is missing", "It names where files go", 'Add "bucket"', where)
    if bool(entry.get("access_key")) != bool(entry.get("secret_key")):
        yield Problem("only one of access_key and secret_key is given", "They belong together",
                      "Add the other one, or remove both to use the environment's or the profile's", where)  # fmt: skip
    for key in ("endpoint_url", "public_base_url"):
        address = entry.get(key)
        if address and (urlsplit(str(address)).scheme not in ("http", "https") or not urlsplit(str(address)).hostname):
            yield Problem(f"{key} is no web address", "It begins with https:// or http:// and names a host",
                          "Copy the whole address", where)  # fmt: skip
