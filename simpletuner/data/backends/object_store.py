"""Data sets in a bucket of an S3-compatible object store, read in ranges.

Keys and tokens go to the client library and nowhere else: no message holds what a service answered
word by word. Knows nothing of clips.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from simpletuner.config.dataset import ClipDataset
from simpletuner.core.errors import UserError
from simpletuner.data.backends.packages import need_package
from simpletuner.data.backends.patience import TRANSIENT_STATUSES, MissingError, Patience, UnreachableError
from simpletuner.data.backends.remote import Faults, open_blocks
from simpletuner.data.sample import Unfit
from simpletuner.data.storage import Listing, Storage, StoredFile

CONNECT_SECONDS = 10
READ_SECONDS = 60
# Codes of S3's error table that pass by themselves, whatever status they come with.
BUSY_CODES = frozenset({"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling",
                        "ThrottlingException", "RequestLimitExceeded", "BandwidthLimitExceeded"})  # fmt: skip
BUSY_ERRNOS = frozenset({errno.EBUSY, errno.EREMOTEIO, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED})


class S3Client:
    """One client of an S3-compatible service per process; opens and describes objects by "bucket/key"."""

    def __init__(self, dataset: ClipDataset, patience: Patience) -> None:
        """
        Args:
            dataset: Entry with the `aws_` keys; what is absent the client library finds (environment, profile, role).
            patience: How often requests are repeated.
        Raises:
            UserError: If s3fs is not installed.
        """
        self._s3fs = need_package("s3fs", "s3", f"data set '{dataset.id}' (type '{dataset.type}')")
        self._dataset = dataset
        self._patience = patience
        self._anonymous = False
        self._clients: dict[int, Any] = {}
        self._lock = Lock()
        botocore = need_package("botocore.exceptions", "s3", "an object store")
        core = need_package("s3fs.core", "s3", "an object store")
        self._no_credentials: type[BaseException] = botocore.NoCredentialsError
        self._client_error: type[BaseException] = botocore.ClientError
        self._connection_errors: tuple[type[BaseException], ...] = (
            *core.S3_RETRYABLE_ERRORS, botocore.ConnectionError, botocore.HTTPClientError,
        )  # fmt: skip
        kinds = (OSError, botocore.BotoCoreError, botocore.ClientError, *self._connection_errors)
        self.faults = Faults(kinds, self._explain)

    @property
    def service(self) -> str:
        """The service in words: its host, or Amazon S3."""
        return host_of(self._dataset.aws_endpoint_url) if self._dataset.aws_endpoint_url else "Amazon S3"

    def list_objects(self, root: str) -> dict[str, dict[str, Any]]:
        """Facts of all objects below `root` by "bucket/key"."""
        found: dict[str, dict[str, Any]] = self._call(lambda client: client.find(root, detail=True))
        return found

    def describe(self, path: str) -> dict[str, Any]:
        """Facts of one object as they are now."""
        facts: dict[str, Any] = self._call(lambda client: client.info(path, refresh=True))
        return facts

    def open(self, path: str) -> BinaryIO:
        """Open an object; every read names the entity tag, so that two versions are never mixed."""
        return open_blocks(
            lambda: self._client().open(path, "rb", block_size=1, cache_type="none"), self._patience, self.faults
        )

    def _call(self, action: Callable[[Any], Any]) -> Any:
        try:
            return self._patience.retry(lambda: self.faults.told(lambda: action(self._client())))
        except UnreachableError as error:
            if self._anonymous or not isinstance(error.__cause__, self._no_credentials):
                raise
        self._anonymous = True  # a public bucket needs no key
        return self._call(action)

    def _client(self) -> Any:
        """The client of this process and mode; its thread does not live on in a forked process."""
        with self._lock:
            key = os.getpid() * 2 + self._anonymous
            if key not in self._clients:
                self._clients[key] = self._connect()
            return self._clients[key]

    def _connect(self) -> Any:
        entry = self._dataset
        keys = {"key": entry.aws_access_key_id, "secret": entry.aws_secret_access_key, "token": entry.aws_session_token}
        client = self._s3fs.S3FileSystem(
            anon=self._anonymous,
            **({} if self._anonymous else keys),
            endpoint_url=entry.aws_endpoint_url,
            client_kwargs={"region_name": entry.aws_region_name} if entry.aws_region_name else {},
            config_kwargs={
                "max_pool_connections": entry.aws_max_pool_connections,
                "connect_timeout": CONNECT_SECONDS,
                "read_timeout": READ_SECONDS,
                # Attempts are counted in one place, `Patience`.
                "retries": {"total_max_attempts": 1},
            },
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        client.retries = 1
        return client

    def _explain(self, error: BaseException) -> UnreachableError:
        answer = next((link for link in _chain(error) if isinstance(link, self._client_error)), None)
        status, code = _answer_of(answer) if answer else (0, "")
        shown = f"{code or status}" if answer else ""
        if isinstance(error, FileNotFoundError) or status == 404:
            return MissingError(f"not found on {self.service}" + (f" ({shown})" if shown else ""))
        if code in BUSY_CODES or status in TRANSIENT_STATUSES:
            return UnreachableError(f"{self.service} is busy ({shown})", transient=True)
        if isinstance(error, PermissionError) or status in (401, 403):
            return UnreachableError(f"access denied by {self.service}" + (f" ({shown})" if shown else ""))
        if isinstance(error, self._no_credentials):
            return UnreachableError("no access key was found")
        if answer is None and isinstance(error, (*self._connection_errors, TimeoutError, ConnectionError)):
            return UnreachableError(f"{self.service} cannot be reached ({type(error).__name__})", transient=True)
        if isinstance(error, OSError) and error.errno in BUSY_ERRNOS:
            return UnreachableError(f"{self.service} is busy ({os.strerror(error.errno)})", transient=True)
        return UnreachableError(f"{self.service} refuses the request ({shown or type(error).__name__})")


class ObjectStore:
    """A folder of a bucket; fulfils `Storage`."""

    def __init__(self, dataset: ClipDataset, patience: Patience = Patience()) -> None:  # noqa: B008 - frozen
        self._owner = dataset.id
        self._bucket = str(dataset.aws_bucket_name).removeprefix("s3://").strip("/")
        self._prefix = "".join(f"{part}/" for part in dataset.aws_data_prefix.split("/") if part)
        self._client = S3Client(dataset, patience)

    @property
    def place(self) -> str:
        shown = f"s3://{self._bucket}/{self._prefix}"
        return shown if self._client.service == "Amazon S3" else f"{shown} at {self._client.service}"

    def list_files(self) -> Listing:
        """Objects whose name, or a folder of it, begins with a dot are passed over."""
        root = f"{self._bucket}/{self._prefix}"
        try:
            found = self._client.list_objects(root)
        except MissingError as error:
            raise UserError(
                f"data set '{self._owner}': there is no bucket '{self._bucket}' on {self._client.service}",
                "aws_bucket_name must name a bucket of the service at aws_endpoint_url",
                "Correct aws_bucket_name, aws_endpoint_url or aws_region_name",
            ) from error
        except UnreachableError as error:
            raise UserError(
                f"data set '{self._owner}': '{self.place}' cannot be listed: {error.reason}",
                "The bucket must be reachable, and the key must allow listing and reading it",
                "Correct aws_endpoint_url, aws_region_name, or the access key (aws_access_key_id and "
                "aws_secret_access_key, or whatever the AWS tools of this machine use)",
            ) from error
        passed_over: Counter[str] = Counter()
        files = sorted(self._files(found, len(root), passed_over), key=lambda file: file.path)
        return Listing(tuple(files), passed_over=dict(passed_over))

    def stat(self, path: str) -> StoredFile:
        try:
            facts = self._client.describe(self._key(path))
        except UnreachableError as error:
            raise Unfit(f"cannot be reached ({error.reason})") from error
        if facts["type"] != "file":
            raise Unfit("not a file but a folder of the bucket")
        return _stored(path, facts)

    def open(self, path: str) -> BinaryIO:
        return self._client.open(self._key(path))

    def local_path(self, path: str) -> Path | None:
        return None

    def _key(self, path: str) -> str:
        return f"{self._bucket}/{self._prefix}{path}"

    def _files(self, found: dict[str, dict[str, Any]], cut: int, passed_over: Counter[str]) -> Iterator[StoredFile]:
        for name, facts in found.items():
            path = name[cut:]
            if facts["type"] != "file" or not path or path.endswith("/"):
                continue
            if any(part.startswith(".") for part in PurePosixPath(path).parts):
                passed_over["hidden files"] += 1
            else:
                yield _stored(path, facts)


def open_object_store(dataset: ClipDataset) -> Storage:
    """The storage of an entry of type `aws`."""
    return ObjectStore(dataset)


def host_of(url: str) -> str:
    """Host and port of `url`, without the name and password it may carry."""
    return urlsplit(url).netloc.rpartition("@")[2] or url


def version_of(facts: dict[str, Any]) -> str:
    """Text that changes with the content of an object: its entity tag, else its time of writing."""
    return str(facts.get("ETag") or facts.get("LastModified") or "").strip('"')


def _stored(path: str, facts: dict[str, Any]) -> StoredFile:
    return StoredFile(path, int(facts["size"]), version_of(facts))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _answer_of(error: Any) -> tuple[int, str]:
    """Status and code of what the service answered."""
    response = error.response
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = str(response.get("Error", {}).get("Code", ""))
    return int(status or (code if code.isdigit() else 0)), "" if code.isdigit() else code
