"""Trying again: how often, how long apart, and which faults are worth it.

Only faults that pass by themselves are tried again (a lost connection, a busy server); a missing file
or a refused key is told at once. Nothing here knows of a protocol.
"""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# RFC 9110 and RFC 6585: time-out, too early, too many requests, and faults of servers and gateways.
TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


class UnreachableError(OSError):
    """A file or place cannot be read. It carries an error number: the place is at fault, not the content of the file.

    Attributes:
        reason: What happened, without any secret.
        transient: Whether another attempt may succeed.
        wait_seconds: How long the other side asked to wait, 0 if it did not say.
    """

    number = errno.EIO

    def __init__(self, reason: str, *, transient: bool = False, wait_seconds: float = 0.0) -> None:
        super().__init__(self.number, reason)
        self.reason = reason
        self.transient = transient
        self.wait_seconds = wait_seconds

    def __str__(self) -> str:
        return self.reason


class MissingError(UnreachableError, FileNotFoundError):
    """The place was reached, and there is no such file."""

    number = errno.ENOENT


@dataclass(frozen=True)
class Patience:
    """How long to go on.

    Attributes:
        attempts: Attempts in all, at least 1.
        first_wait_seconds: Longest wait before the second attempt; it doubles with each further one.
        longest_wait_seconds: Bound of all waits, also of those the other side asks for.
    """

    attempts: int = 5
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 30.0

    def wait_seconds(self, failures: int, asked_seconds: float = 0.0) -> float:
        """How long to wait after `failures` (from 1) failed attempts in a row.

        Between half and the whole of a doubling time at random, so that many workers that failed
        together do not return together; at least `asked_seconds`, at most `longest_wait_seconds`.
        """
        whole = self.first_wait_seconds * 2.0 ** (failures - 1)
        drawn = whole * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing
        return min(self.longest_wait_seconds, max(drawn, asked_seconds))

    def pause(self, failures: int, error: UnreachableError) -> None:
        """Wait after `failures` (from 1) failed attempts in a row, and say so in the log."""
        wait = self.wait_seconds(failures, error.wait_seconds)
        logger.info("%s; trying again in %.1f s (attempt %d of %d)", error.reason, wait, failures + 1, self.attempts)
        time.sleep(wait)

    def retry(self, action: Callable[[], Result]) -> Result:
        """Call `action` until it succeeds.

        Raises:
            UnreachableError: The last one, if it is not transient or all attempts failed.
        """
        for failures in range(1, self.attempts):
            try:
                return action()
            except UnreachableError as error:
                if not error.transient:
                    raise
                self.pause(failures, error)
        return action()
