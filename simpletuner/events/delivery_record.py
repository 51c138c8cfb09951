"""How far one receiver has got with the events of a run, in `<run folder>/delivery/<receiver>.jsonl`.

Lines are appended in the order in which things happen and survive a kill: `begun` before an event goes
out, `taken` once the receiver has it, `lost` when it never will. After a kill the one event that was
begun and not settled is in doubt; everything before it is settled, everything behind it is not.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simpletuner.events.lines import LineFile, read_lines

FOLDER = "delivery"
_LARGEST_BYTES = 1 << 18  # then only the sums are kept


class DeliveryRecord:
    """The record of one receiver.

    Attributes:
        thread: Name of this conversation; with an event's number it identifies a message over all starts.
        settled: Number of the newest event that is taken, lost or not for this receiver.
        offset: Bytes of the journal up to it.
        doubtful: Number of the event that was under way when an earlier start was killed; 0 when there is none.
        lost: Reason -> number of events.
    """

    def __init__(self, folder: Path, receiver: str, newest: int, journal_bytes: int) -> None:
        """Open the record of `receiver`, or begin one at the end of the journal.

        Args:
            folder: The run folder.
            receiver: Part of the file's name.
            newest: Number of the newest event in the journal.
            journal_bytes: Length of the journal.

        Raises:
            UserError: If the record cannot be written (exit code 6).
        """
        path = folder / FOLDER / f"{receiver}.jsonl"
        self._lines = LineFile(path)
        self.thread, self.settled, self.offset, self.doubtful = uuid.uuid4().hex[:12], newest, journal_bytes, 0
        self.lost: Counter[str] = Counter()
        begun, found, is_known = 0, (0, 0), False
        for line in read_lines(path):
            if "thread" in line:
                self.thread, is_known = str(line["thread"]), True
                self.lost = Counter({str(why): int(count) for why, count in line.get("lost", {}).items()})
            elif "lost" in line:
                self.lost[str(line["why"])] += 1
            begun = int(line.get("begun", 0))
            if "settled" in line:
                found = (int(line["settled"]), int(line["offset"]))
        # A journal that is shorter than what was delivered from it is another one.
        if is_known and found[0] <= newest and found[1] <= journal_bytes:
            self.settled, self.offset = found
            self.doubtful = begun if begun > self.settled else 0
        else:
            self.lost.clear()
        self._rewrite()

    def identity(self, sequence: int) -> str:
        """The name under which a message about event `sequence` goes out, also when it is repeated."""
        return f"{self.thread}-{sequence}"

    def begin(self, sequence: int) -> None:
        """Event `sequence` is about to go out."""
        self._lines.append({"begun": sequence})

    def put_back(self, sequence: int) -> None:
        """Event `sequence` did not go out after all."""
        self._lines.append({"waits": sequence})

    def take(self, sequence: int, offset: int) -> None:
        """The receiver has event `sequence`, whose line ends at `offset`."""
        self._settle({"taken": sequence}, sequence, offset)

    def lose(self, sequence: int, offset: int, why: str) -> None:
        """The receiver will never get event `sequence`."""
        self.lost[why] += 1
        self._settle({"lost": sequence, "why": why}, sequence, offset)

    def skip(self, sequence: int, offset: int) -> None:
        """Nothing up to event `sequence` is for this receiver."""
        if sequence > self.settled:
            self._settle({"skipped": sequence}, sequence, offset)

    def close(self) -> None:
        """Put everything on the disk."""
        self._lines.close()

    def _settle(self, line: Mapping[str, Any], sequence: int, offset: int) -> None:
        self.settled, self.offset, self.doubtful = sequence, offset, 0
        self._lines.append({**line, "settled": sequence, "offset": offset})
        if self._lines.size_bytes > _LARGEST_BYTES:
            self._rewrite()

    def _rewrite(self) -> None:
        told: list[dict[str, Any]] = [
            {"thread": self.thread, "settled": self.settled, "offset": self.offset, "lost": dict(self.lost)}
        ]
        if self.doubtful:
            told.append({"begun": self.doubtful})
        self._lines.rewrite(told)
