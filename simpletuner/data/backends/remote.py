"""A file that lies elsewhere, read in blocks: only the blocks that are asked for travel.

Works over any file object that can seek and read. Knows nothing of the service behind it: what a
fault of that service means is told by the `Faults` of its storage.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar, cast

from simpletuner.data.backends.patience import Patience, UnreachableError

Result = TypeVar("Result")

# A header or an index lies in one or two blocks, and such a block travels about as long as its request.
BLOCK_BYTES = 1 << 18
# Blocks fetched by one request once a file is read straight on (4 MiB).
LONGEST_RUN = 16
# Blocks kept per open file (8 MiB): a decoder goes forwards and returns only to the index.
KEPT_BLOCKS = 32
# FFmpeg and Pillow ask for some bytes at a time.
BUFFER_BYTES = 1 << 16


@dataclass(frozen=True)
class Faults:
    """The exceptions of one service and their meaning.

    Attributes:
        kinds: Exceptions that the service's client raises.
        explain: Says what one of them means, without any secret.
    """

    kinds: tuple[type[BaseException], ...]
    explain: Callable[[BaseException], UnreachableError]

    def told(self, action: Callable[[], Result]) -> Result:
        """Call `action`; a fault of the service comes out as an `UnreachableError`."""
        try:
            return action()
        except UnreachableError:
            raise
        except self.kinds as error:
            raise self.explain(error) from error


def open_blocks(open_file: Callable[[], Any], patience: Patience, faults: Faults) -> BinaryIO:
    """Open a remote file for reading in any order.

    Args:
        open_file: Opens the file of the service, an object with `size`, `seek`, `read` and `close` that keeps nothing.
        patience: How often each request is repeated.
        faults: What the exceptions of the service mean.
    Raises:
        UnreachableError: If it cannot be opened.
    """
    handle = patience.retry(lambda: faults.told(open_file))
    return cast(BinaryIO, io.BufferedReader(RemoteFile(handle, patience, faults), BUFFER_BYTES))


class RemoteFile(io.RawIOBase):
    """The blocks of one remote file; not for several threads at once."""

    def __init__(self, handle: Any, patience: Patience, faults: Faults) -> None:
        self._handle = handle
        self._patience = patience
        self._faults = faults
        self._size = int(handle.size)
        self._position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._run = 1
        self._after_run = 0  # the block behind the last request

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}, before the beginning of the file")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        if self._position >= self._size:
            return 0
        number, inside = divmod(self._position, BLOCK_BYTES)
        data = self._block(number)[inside : inside + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._blocks.clear()
            self._handle.close()
        super().close()

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            # Reading straight on, a request fetches at most as much again as was read before it.
            self._run = min(LONGEST_RUN, self._run * 2) if number == self._after_run and number else 1
            self._fetch(number, self._run)
            self._after_run = number + self._run
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def _fetch(self, first: int, count: int) -> None:
        start, end = first * BLOCK_BYTES, min(self._size, (first + count) * BLOCK_BYTES)
        data = self._patience.retry(lambda: self._faults.told(lambda: self._read(start, end)))
        for number in range(first, first + -(-len(data) // BLOCK_BYTES)):
            begin = (number - first) * BLOCK_BYTES
            self._blocks[number] = data[begin : begin + BLOCK_BYTES]
        while len(self._blocks) > KEPT_BLOCKS:
            self._blocks.popitem(last=False)

    def _read(self, start: int, end: int) -> bytes:
        self._handle.seek(start)
        data = bytes(self._handle.read(end - start))
        if len(data) != end - start:
            raise UnreachableError(f"{len(data)} bytes came instead of {end - start}", transient=True)
        return data
