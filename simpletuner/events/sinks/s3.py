"""Buckets of S3-compatible stores as places that results are published to.

What is there already, by size and SHA-256, is not sent again; the manifest of a checkpoint goes last, so
that a checkpoint whose manifest is there is whole. Keys stay with the client library: no message holds
what a service answered word by word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simpletuner.config.hub_name import repository_of_project
from simpletuner.config.publishing_file import PublishingPlace
from simpletuner.core.errors import Problem, Severity
from simpletuner.events.sink import SinkContext
from simpletuner.events.sinks.publish_files import Job
from simpletuner.events.sinks.publisher import Publisher, PublishPatience, Refusal
from simpletuner.events.types import Event

MANIFEST = "checkpoint_manifest.json"
_DIGEST = "sha256"
_CONNECT_SECONDS, _READ_SECONDS = 10, 60
_WORDS = {
    "NoSuchBucket": "there is no such bucket",
    "404": "there is no such bucket",
    "AccessDenied": "the keys may not write there",
    "403": "the keys may not write there",
    "InvalidAccessKeyId": "the access key is not known there",
    "SignatureDoesNotMatch": "the secret key does not fit the access key",
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it, the store compares times",
    "PermanentRedirect": "the bucket lies in another region: set region",
    "AuthorizationHeaderMalformed": "the bucket lies in another region: set region",
}


class S3Target:
    """One bucket, and a folder in it."""

    def __init__(self, number: int, place: PublishingPlace, run_name: str) -> None:
        self.name = f"s3-{number}"
        self.told = f"the bucket '{place.bucket}'"
        self._place = place
        base = place.base_path if place.base_path is not None else repository_of_project(run_name)
        self._base = base.strip("/")
        self._client_made: Any = None

    @property
    def repository(self) -> str:
        return self._address()

    def _address(self) -> str:
        if self._place.public_base_url:
            return "/".join(part for part in (self._place.public_base_url.rstrip("/"), self._base) if part)
        return "/".join(part for part in (f"s3://{self._place.bucket}", self._base) if part)

    def upload(self, files: Mapping[str, Path | bytes], title: str) -> tuple[str, Refusal | None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            for name in sorted(files, key=lambda name: name.endswith(MANIFEST)):
                self._put(f"{self._base}/{name}".lstrip("/"), files[name])
        except (BotoCoreError, ClientError, Boto3Error, OSError) as error:
            return "", _refusal(error)
        return self._address(), None

    def examine(self, where: str) -> list[Problem]:
        """What stands against uploads: the bucket must be there and the keys must fit."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client().head_bucket(Bucket=self._place.bucket)
        except (BotoCoreError, ClientError, OSError, ValueError) as error:
            refusal = _refusal(error)
            severity = Severity.ERROR if refusal.is_final else Severity.WARNING
            rule = "Results are uploaded there" if refusal.is_final else "Training does not wait for it"
            return [Problem(f"{self.told}: {refusal.reason}", rule, "Correct publishing_config", where, severity)]
        return []

    def advice(self, job: Job, source: Path) -> str:
        return ""

    def _put(self, key: str, content: Path | bytes) -> None:
        """Upload one object unless it is there, and look whether it has arrived."""
        size, digest = _measure(content)
        if self._has(key, size, digest):
            return
        metadata = {_DIGEST: digest}
        if isinstance(content, bytes):
            self._client().put_object(Bucket=self._place.bucket, Key=key, Body=content, Metadata=metadata)
        else:
            extra = {"Metadata": metadata}
            self._client().upload_file(str(content), self._place.bucket, key, ExtraArgs=extra)
        if not self._has(key, size, digest):
            raise OSError(f"{key.rsplit('/', 1)[-1]} is not there after its upload")

    def _has(self, key: str, size: int, digest: str) -> bool:
        from botocore.exceptions import ClientError

        try:
            there = self._client().head_object(Bucket=self._place.bucket, Key=key)
        except ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404:
                return False
            raise
        return bool(there["ContentLength"] == size and there.get("Metadata", {}).get(_DIGEST) == digest)

    def _client(self) -> Any:
        if self._client_made is None:
            import boto3
            from botocore.config import Config

            place = self._place
            # Attempts are counted by the publisher.
            config = Config(
                connect_timeout=_CONNECT_SECONDS, read_timeout=_READ_SECONDS, retries={"total_max_attempts": 1}
            )
            self._client_made = boto3.session.Session().client(
                "s3", region_name=place.region, endpoint_url=place.address, config=config,
                aws_access_key_id=place.access_key, aws_secret_access_key=place.secret_key,
            )  # fmt: skip
        return self._client_made


class S3Sink:
    """Uploads every checkpoint and the result to each bucket."""

    def __init__(self, context: SinkContext, patience: PublishPatience | None = None) -> None:
        self._publishers = [
            Publisher(context, target, checkpoints=True, result=True, patience=patience or PublishPatience())
            for target in targets(context.places, context.run_name)
        ]

    def receive(self, event: Event, sequence: int) -> None:
        for publisher in self._publishers:
            publisher.receive(event, sequence)

    def close(self) -> None:
        for publisher in self._publishers:
            publisher.close()


def targets(places: tuple[PublishingPlace, ...], run_name: str) -> list[S3Target]:
    """The buckets of a configuration."""
    return [S3Target(number, place, run_name) for number, place in enumerate(places, 1)]


def _measure(content: Path | bytes) -> tuple[int, str]:
    """(bytes, SHA-256)"""
    if isinstance(content, bytes):
        return len(content), hashlib.sha256(content).hexdigest()
    digest = hashlib.sha256()
    with content.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return content.stat().st_size, digest.hexdigest()


def _refusal(error: BaseException) -> Refusal:
    from botocore.exceptions import ClientError, NoCredentialsError, PartialCredentialsError

    cause = error
    while not isinstance(cause, ClientError) and cause.__context__ is not None:
        cause = cause.__context__  # the transfer library words the service's errors anew
    if isinstance(cause, ClientError):
        code = str(cause.response.get("Error", {}).get("Code", ""))
        status = int(cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        is_final = code in _WORDS or (400 <= status < 500 and status not in (408, 425, 429))
        return Refusal(_WORDS.get(code) or f"the store answered {code or status}", is_final, ends_all=code in _WORDS)
    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return Refusal("there are no keys for it: give access_key and secret_key, or a profile", True, ends_all=True)
    if isinstance(error, ValueError):
        return Refusal("its address or region is not valid", True, ends_all=True)
    return Refusal(f"it cannot be reached ({type(error).__name__})", False)
