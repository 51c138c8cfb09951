"""One file's header and the hash of its content, as the index keeps them; and the process that does nothing else.

Such a process (`serve`) is started by `header_processes.py`. It imports the readers and no configuration, so that it
is ready soon, and speaks JSON, a line per message.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from simpletuner.data.sample import DamagedMedia, MediaInfo, Unfit, UnreadMedia, UnusableMedia
from simpletuner.data.storage import LocalStorage, Storage, StoredFile

HASHED_BYTES = 1 << 16  # at either end of a file

Media = MediaInfo | Unfit  # facts of a file, or the verdict on it
READY = "ready"
TOLD_EVERY_SECONDS = 0.02  # answers gather for so long: a line on its own wakes up whoever listens
_VERDICTS: dict[str, type[Unfit]] = {kind.__name__: kind for kind in (Unfit, UnusableMedia, DamagedMedia, UnreadMedia)}


def read_header(storage: Storage, file: StoredFile) -> tuple[Media, str]:
    """What a file holds, or the verdict on it; and the hash of its content, empty where none is needed.

    Args:
        storage: Where it lies.
        file: The file as it was listed.
    """
    from simpletuner.data.probe import probe

    try:
        media: Media = probe(storage, file.path, file)
    except Unfit as unfit:
        media = unfit
    return media, content_hash(storage, file) if is_lasting(media) else ""


def is_lasting(media: Media) -> bool:
    """Whether the answer depends on the content of the file alone."""
    return isinstance(media, MediaInfo) or (isinstance(media, UnusableMedia) and not isinstance(media, UnreadMedia))


def content_hash(storage: Storage, file: StoredFile) -> str:
    """Hash of both ends of a file of this machine; empty for other places, whose versions follow the content."""
    local = storage.local_path(file.path)
    if local is None or file.size_bytes <= 0:  # a pipe has no size, and opening it would wait for ever
        return ""
    try:
        with local.open("rb") as handle:
            digest = hashlib.blake2b(handle.read(HASHED_BYTES), digest_size=16)
            handle.seek(max(0, file.size_bytes - HASHED_BYTES))
            digest.update(handle.read(HASHED_BYTES))
    except OSError:
        return ""
    return digest.hexdigest()


# Messages ---------------------------------------------------------------------------------------


def write_question(root: Path, files: list[StoredFile]) -> bytes:
    """The line that asks for the headers of `files` below the folder `root`."""
    return _line([str(root), [[file.path, file.size_bytes, file.version] for file in files]])


def read_answer(line: bytes) -> tuple[Media, str]:
    """What a process answered about one file.

    Raises:
        ValueError: If the line is none of its answers.
    """
    kind, facts, content = json.loads(line)
    return (MediaInfo(**facts) if kind == MediaInfo.__name__ else _VERDICTS[kind](facts)), content


def _write_answer(media: Media, content: str) -> bytes:
    if isinstance(media, MediaInfo):
        return _line([MediaInfo.__name__, vars(media), content])
    kind = next(base.__name__ for base in type(media).__mro__ if base.__name__ in _VERDICTS)
    return _line([kind, media.reason, content])


def _line(message: Any) -> bytes:
    return json.dumps(message).encode() + b"\n"


def serve() -> None:
    """Answer questions from the input until it ends: one line per file, in the order in which they were asked.

    What this process had read and not yet told is lost with it; who asks for one file alone knows which it was.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; whoever asks decides
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not be taken for an answer
    import simpletuner.data.probe  # noqa: F401 - loaded before the first question, whose time is watched

    gc.freeze()  # what the readers brought stays; collections need not look at it again and again
    answers.write(_line(READY))
    answers.flush()
    for line in sys.stdin.buffer:
        root, files = json.loads(line)
        storage = LocalStorage(Path(root))
        told = time.monotonic()
        for file in files:
            answers.write(_write_answer(*read_header(storage, StoredFile(*file))))
            if time.monotonic() - told > TOLD_EVERY_SECONDS:
                answers.flush()
                told = time.monotonic()
        answers.flush()
