"""Reading of caption files: one text beside a clip, or one list for a folder.

Says what is in a file and what is wrong with it; which file belongs to which clip is decided in
`captions.py`.
"""

from __future__ import annotations

import codecs
import json
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from simpletuner.data.sample import Unfit, printable
from simpletuner.data.storage import Storage

# A caption of a book's length is a wrong file; the text encoder reads some hundred tokens of it.
LARGEST_CAPTION_BYTES = 1 << 20
LARGEST_LINE_BYTES = 1 << 20
CAPTION_KEYS = ("caption", "captions", "text", "prompt")
FILE_KEYS = ("file_name", "path", "video", "image")
BAD_LINES_SHOWN = 3


def read_caption_file(storage: Storage, path: str) -> str:
    """The text of a caption file, without a byte order mark.

    Raises:
        Unfit: If it cannot be read, is too large to be a caption, or is not UTF-8 text.
    """
    name = printable(posixpath.basename(path))
    try:
        with storage.open(path) as handle:
            content = handle.read(LARGEST_CAPTION_BYTES + 1)
    except FileNotFoundError as error:
        raise Unfit(f"caption file '{name}' is missing") from error
    except OSError as error:
        raise Unfit(f"caption file '{name}' cannot be read ({error.strerror or error})") from error
    if len(content) > LARGEST_CAPTION_BYTES:
        raise Unfit(f"caption file '{name}' has more than {LARGEST_CAPTION_BYTES} bytes")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise Unfit(f"caption file '{name}' is UTF-16, not UTF-8 (byte 0); save it as UTF-8")
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unfit(f"caption file '{name}' is not UTF-8 at byte {error.start}; save it as UTF-8") from error
    if "\0" in text:
        raise Unfit(f"caption file '{name}' holds a zero byte at byte {content.index(0)}, it is not a text")
    return text


def caption_texts(value: Any) -> tuple[str, ...]:
    """The captions in a JSON value: a text, a list of texts, or an object with one of `CAPTION_KEYS`.

    Raises:
        ValueError: If it is none of these; the text says what was found.
    """
    if isinstance(value, Mapping):
        key = next((key for key in CAPTION_KEYS if key in value), None)
        if key is None:
            held = ", ".join(list(value)[:5]) or "nothing"
            raise ValueError(f"none of the keys {', '.join(CAPTION_KEYS)} (it holds {held})")
        value = value[key]
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("a caption that is neither a text nor a list of texts")
    return tuple(text.strip() for text in texts if text.strip())


class Manifest:
    """A list of captions: one JSON object per line, each naming a file of its folder or below.

    Attributes:
        notes: Sentences on lines that could not be used.
    """

    def __init__(self, path: str) -> None:
        """
        Args:
            path: The list's path in its storage.
        """
        self._path = path
        self._folder = path.rpartition("/")[0]
        self._captions: dict[str, list[str]] = {}
        self._by_name: dict[str, set[str]] = {}
        self._bad: list[str] = []

    @property
    def name(self) -> str:
        """File name for messages."""
        return printable(self._path)

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be read, one sentence at most."""
        if not self._bad:
            return ()
        rest = f", and {len(self._bad) - BAD_LINES_SHOWN} more" if len(self._bad) > BAD_LINES_SHOWN else ""
        return (f"'{self.name}' has lines that are passed over: {'; '.join(self._bad[:BAD_LINES_SHOWN])}{rest}",)

    def add_line(self, number: int, line: bytes) -> None:
        """Take in one line; a bad one is only noted, since it may belong to a file nobody asks for."""
        try:
            entry = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            if not isinstance(entry, Mapping):
                raise ValueError("no object")
            file = next((entry[key] for key in FILE_KEYS if key in entry), None)
            if not isinstance(file, str) or not file.strip():
                raise ValueError(f"none of the keys {', '.join(FILE_KEYS)}")
            captions = caption_texts({key: entry[key] for key in CAPTION_KEYS if key in entry})
        except (ValueError, RecursionError) as error:  # broken JSON and broken UTF-8 are ValueErrors too
            self._bad.append(f"line {number} ({_in_short(error)})")
            return
        key = posixpath.normpath(file.strip().replace("\\", "/"))
        self._captions.setdefault(key, []).extend(captions)
        self._by_name.setdefault(posixpath.basename(key), set()).add(key)

    def note_unreadable(self, reason: str) -> None:
        """Note that the file ended early."""
        self._bad.append(reason)

    def captions_of(self, path: str) -> tuple[str, ...] | None:
        """Captions of the file at `path` of the storage; None if no line names it.

        A line names a file by its path from the list's folder, with or without the ending, or else by
        a name that no other line has.
        """
        below = path[len(self._folder) :].lstrip("/")
        for key in (below, posixpath.splitext(below)[0]):
            if key in self._captions:
                return tuple(self._captions[key])
        same_name = self._by_name.get(posixpath.basename(below), set())
        keys = [key for key in same_name if key.startswith("/") or "/" not in key]
        return tuple(self._captions[keys[0]]) if len(keys) == 1 else None


def read_manifest(storage: Storage, path: str) -> Manifest:
    """Read a `.jsonl` list; what cannot be used is in its notes."""
    manifest = Manifest(path)
    try:
        for number, line in _lines(storage, path):
            if len(line) > LARGEST_LINE_BYTES:
                manifest.note_unreadable(f"line {number} has more than {LARGEST_LINE_BYTES} bytes; reading ends there")
                break
            if line.strip():
                manifest.add_line(number, line)
    except OSError as error:
        manifest.note_unreadable(f"it cannot be read ({error.strerror or error})")
    return manifest


def _lines(storage: Storage, path: str) -> Iterator[tuple[int, bytes]]:
    with storage.open(path) as handle:
        number = 0
        while line := handle.readline(LARGEST_LINE_BYTES + 1):
            number += 1
            yield number, line


def _in_short(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    if isinstance(error, json.JSONDecodeError):
        return f"no JSON: {error.msg}, column {error.colno}"
    return str(error) or "nested too deeply"
