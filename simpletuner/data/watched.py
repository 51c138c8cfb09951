"""A file handed to a decoder that cannot be told about a broken connection.

FFmpeg takes a fault of reading for the end of the file, and would call a whole clip truncated. The
fault is kept here until the decoder is done, and then counts more than whatever it made of it.
Knows nothing of clips or services.
"""

from __future__ import annotations

import io
from types import TracebackType
from typing import BinaryIO

from simpletuner.core.errors import UserError
from simpletuner.data.sample import UnreadMedia


class WatchedFile:
    """A readable file whose first fault comes out when its `with` statement ends, not while it is read."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self._fault: OSError | None = None

    def __enter__(self) -> WatchedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """
        Raises:
            UnreadMedia: If reading failed, in place of what the decoder says of the file.
        """
        self._handle.close()
        is_verdict = error is None or (isinstance(error, Exception) and not isinstance(error, UserError))
        if self._fault is not None and is_verdict:
            raise UnreadMedia(f"cannot be read to its end ({self._fault.strerror or self._fault})") from self._fault

    def readable(self) -> bool:
        """Always."""
        return True

    def writable(self) -> bool:
        """Never."""
        return False

    def seekable(self) -> bool:
        """Always."""
        return True

    def read(self, count: int = -1) -> bytes:
        """Up to `count` bytes; nothing from the first fault on."""
        if self._fault is None:
            try:
                return self._handle.read(count)
            except OSError as error:
                self._fault = error
        return b""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position; to the end and back costs nothing."""
        return self._handle.seek(offset, whence)

    def tell(self) -> int:
        """The position."""
        return self._handle.tell()
