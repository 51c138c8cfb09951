"""Configuration files as people write them: tolerant JSON, TOML, env files, prompt libraries.

Every value keeps the line it stood on, so that messages can point at it. This module must not know
what any key means.
"""

from __future__ import annotations

import codecs
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpletuner.core.errors import Problem, UserError

KeyPath = tuple[str | int, ...]
POSITION = re.compile(r"line (\d+) column (\d+)")
# What a key or a value begins with: a whole text, an opening bracket, or a number or word.
JSON_START = re.compile(r""""(?:[^"\\]|\\.)*"|[{[]|[^][{},:\s"]+""")
ENV_REFERENCE = re.compile(r"\{env:([^{}]*)\}")


@dataclass(frozen=True)
class Document:
    """The content of one file, and the line of each key and list item in it.

    Attributes:
        name: How messages call the file.
        value: Plain dictionaries, lists, texts, numbers, booleans and None.
        lines: Path into `value` -> line, from 1.
    """

    name: str
    value: Any
    lines: Mapping[KeyPath, int]

    def place(self, *path: str | int) -> str:
        """Where a value stands ("config/config.json:12"); the file alone when its line is unknown."""
        line = self.lines.get(path)
        return f"{self.name}:{line}" if line else self.name


def read_json(path: Path, name: str) -> Document:
    """Read JSON with comments, trailing commas, single quotes, a byte order mark or no outer braces.

    Raises:
        UserError: If the file cannot be read, is not JSON (line and column), or names a key twice.
    """
    return parse_json(read_text(path, name), name)


def parse_json(text: str, name: str) -> Document:
    """Like `read_json`, for a text at hand."""
    plain = _parse_plain_json(text, name)
    return _parse_tolerantly(text, name) if plain is None else plain


def _parse_plain_json(text: str, name: str) -> Document | None:
    """A text that is JSON by the letter; None when it takes the tolerant parser, whose import alone is slow."""
    repeated = []

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            repeated.append(pairs)
        return found

    lines: dict[KeyPath, int] = {}
    starts = _start_lines(text)
    try:
        value = json.loads(text, object_pairs_hook=keep)
        next(starts)  # of the whole
        _note_lines(value, (), starts, lines)
    except (ValueError, RecursionError):
        return None
    return None if repeated else Document(name, value, lines)


def _start_lines(text: str) -> Iterator[int]:
    """The line of each key and each value of a JSON text, in their order."""
    line, counted = 1, 0
    for found in JSON_START.finditer(text):
        line += text.count("\n", counted, found.start())
        counted = found.start()
        yield line


def _note_lines(value: Any, path: KeyPath, starts: Iterator[int], lines: dict[KeyPath, int]) -> None:
    """Walk through `value` beside the beginnings of its parts."""
    if isinstance(value, dict):
        for key, item in value.items():
            lines[(*path, key)] = next(starts)
            next(starts)  # of the item, which is placed by its key
            _note_lines(item, (*path, key), starts, lines)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            lines[(*path, number)] = next(starts)
            _note_lines(item, (*path, number), starts, lines)


def _parse_tolerantly(text: str, name: str) -> Document:
    from json5.loader import ModelLoader, loads

    wrapped = _needs_braces(text)
    lines: dict[KeyPath, int] = {}
    problems: list[Problem] = []
    try:
        model = loads("{" + text + "\n}" if wrapped else text, loader=ModelLoader())
        value = _plain(model.value, (), lines, problems, name)
    except RecursionError:
        raise UserError(f"'{name}' is nested too deeply", fix="Write a flat file") from None
    except ValueError as error:
        raise _syntax_error(error, text, name, wrapped) from None
    if problems:
        raise UserError.of(problems)
    return Document(name, value, lines)


def _needs_braces(text: str) -> bool:
    """Whether the text is a list of `"key": value` lines without the braces around it."""
    without = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL).lstrip()
    return bool(re.match(r"""("[^"\n]*"|'[^'\n]*'|[A-Za-z_$][\w$]*)\s*:""", without))


def _syntax_error(error: ValueError, text: str, name: str, wrapped: bool) -> UserError:
    found = POSITION.search(str(error))
    rows = text.splitlines() or [""]
    line, column = (int(found[1]), int(found[2])) if found else (len(rows), len(rows[-1]) + 1)
    if wrapped and line == 1:
        column = max(1, column - 1)
    line = min(line, len(rows))
    expected = re.search(r"Was expecting ([^\n]*?)(?: in or near|$|\n)", str(error))
    wanted = (
        (expected[1] if expected else "")
        .replace("RBRACE", "}")
        .replace("RBRACKET", "]")
        .replace("COMMA", "a comma")
        .replace("COLON", "a colon")
    )
    if not text.strip():
        return UserError(
            "the file is empty", "A configuration file holds one object: { … }", "Write at least {}", where=name
        )
    return UserError(
        f"this is not valid JSON: {rows[line - 1].strip()[:60]!r}",
        f"Expected here: {wanted}" if wanted else "",
        "Correct this line or the one before it (a missing comma, quote or bracket is the usual reason)",
        where=f"{name}:{line}:{column}",
    )


def _plain(node: Any, path: KeyPath, lines: dict[KeyPath, int], problems: list[Problem], name: str) -> Any:
    from json5.model import BooleanLiteral, Infinity, JSONArray, JSONObject, NaN, NullLiteral, String, UnaryOp

    if isinstance(node, JSONObject):
        return _plain_object(node, path, lines, problems, name)
    if isinstance(node, JSONArray):
        items = []
        for number, item in enumerate(node.values):
            lines[(*path, number)] = item.lineno or 0
            items.append(_plain(item, (*path, number), lines, problems, name))
        return items
    if isinstance(node, String):
        return node.characters
    if isinstance(node, BooleanLiteral):
        return node.value
    if isinstance(node, NullLiteral):
        return None
    if isinstance(node, UnaryOp):
        number = _plain(node.value, path, lines, problems, name)
        return -number if node.op == "-" else number
    if isinstance(node, Infinity):
        return float("inf")
    if isinstance(node, NaN):
        return float("nan")
    return node.value  # type: ignore[no-any-return]  # Integer and Float


def _plain_object(
    node: Any, path: KeyPath, lines: dict[KeyPath, int], problems: list[Problem], name: str
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in node.key_value_pairs:
        key = pair.key.name if type(pair.key).__name__ == "Identifier" else pair.key.characters
        here = (*path, key)
        line = pair.key.lineno or 0
        if key in found and not is_comment(key):
            problems.append(
                Problem(
                    f"'{key}' is given twice, on lines {lines[here]} and {line}",
                    "Each key may stand once",
                    "Remove one of them",
                    where=f"{name}:{line}",
                )
            )
            continue
        lines[here] = line
        found[key] = _plain(pair.value, here, lines, problems, name)
    return found


def is_comment(key: str) -> bool:
    """Whether a key only carries a remark of the person who wrote the file."""
    return key.startswith(("_", "//", "#"))


def read_toml(path: Path, name: str) -> Document:
    """Read a TOML file of options.

    Raises:
        UserError: If it cannot be read or is not TOML.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    text = read_text(path, name)
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+), column (\d+)", str(error))
        place = f"{name}:{found[1]}:{found[2]}" if found else name
        reason = str(error).split(" (at ")[0]
        raise UserError(f"this is not valid TOML: {reason}", fix="Correct this line", where=place) from None
    lines: dict[KeyPath, int] = {}
    for number, row in enumerate(text.splitlines(), start=1):
        key = re.match(r"""\s*["']?([\w.-]+)["']?\s*=""", row)
        if key:
            lines.setdefault((key[1],), number)
    return Document(name, value, lines)


def read_env(path: Path, name: str, variables: Mapping[str, str]) -> tuple[dict[str, str], dict[str, int]]:
    """Read `KEY=value` lines; gives the values and the line of each.

    `export` in front, comments, quotes, `$NAME` and `KEY+=more` are understood as a shell would,
    with `variables` as what is set already.

    Raises:
        UserError: If a line is none of these.
    """
    found: dict[str, str] = {}
    lines: dict[str, int] = {}
    problems = []
    for number, row in enumerate(read_text(path, name).splitlines(), start=1):
        row = row.strip()
        if not row or row.startswith("#"):
            continue
        parts = re.match(r"(?:export\s+)?([A-Za-z_]\w*)(\+?)=(.*)$", row)
        if parts is None:
            problems.append(
                Problem(
                    f"this line cannot be read: {row[:60]!r}", "An env file holds lines KEY=value",
                    "Correct or remove it",
                    where=f"{name}:{number}",
                )
            )  # fmt: skip
            continue
        key, more, text = parts.groups()
        value = _shell_value(text, {**variables, **found})
        found[key] = f"{found.get(key, variables.get(key, ''))} {value}".strip() if more else value
        lines[key] = number
    if problems:
        raise UserError.of(problems)
    return found, lines


def _shell_value(text: str, variables: Mapping[str, str]) -> str:
    text = text.strip()
    if text.startswith("'"):
        return text[1:].split("'")[0]
    text = text[1:].split('"')[0] if text.startswith('"') else re.split(r"\s#", text)[0].strip()
    return re.sub(r"\$\{?([A-Za-z_]\w*)\}?", lambda found: variables.get(found[1], ""), text)


def read_text(path: Path, name: str) -> str:
    """The text of a file without a byte order mark.

    Raises:
        UserError: If it cannot be opened or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        is_wide = error.object.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        raise UserError(
            f"the file is {'UTF-16, and ' if is_wide else ''}not UTF-8 text (byte {error.start})",
            "PowerShell's `>` writes UTF-16" if is_wide else "",
            "Save it as UTF-8",
            where=name,
        ) from None
    except OSError as error:
        raise UserError(
            f"the file cannot be read ({error.strerror or error})", fix="Check the path", where=name
        ) from None


def fill_environment(value: Any, environment: Mapping[str, str], where: str) -> Any:
    """Replace `{env:NAME}` in every text inside `value`.

    Raises:
        UserError: If a variable is not set.
    """
    missing = sorted(
        {name for text in _texts(value) for name in ENV_REFERENCE.findall(text) if name not in environment}
    )
    if missing:
        raise UserError(
            f"{{env:{missing[0]}}} names an environment variable that is not set",
            fix=f"Set it (export {missing[0]}=…), or write the value itself",
            where=where,
        )
    return replace_texts(value, lambda text: ENV_REFERENCE.sub(lambda found: environment[found[1]], text))


def replace_texts(value: Any, change: Any) -> Any:
    """The same structure with `change` applied to each text in it (not to keys)."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [replace_texts(item, change) for item in value]
    if isinstance(value, dict):
        return {key: replace_texts(item, change) for key, item in value.items()}
    return value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
