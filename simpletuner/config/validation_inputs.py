"""Validation videos that begin with a picture: the list of `validation_input`, each with its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simpletuner.config.documents import Document, read_json
from simpletuner.config.paths import expand
from simpletuner.config.run_config import ValidationPrompt
from simpletuner.core.errors import Problem, UserError

KEYS = ("path", "prompt", "shortname")


def read_inputs(path: Path, name: str, folders: Sequence[Path]) -> tuple[list[ValidationPrompt], list[Problem]]:
    """Prompts with a picture, and findings about the list.

    Args:
        path: A JSON file: a list of {"path", "prompt", "shortname"}; the last is the nickname, else the picture's name.
        name: How messages call it.
        folders: Where a relative path of a picture may start, the first that has it wins.
    """
    try:
        document = read_json(path, name)
    except UserError as error:
        return [], list(error.problems)
    if not isinstance(document.value, list):
        rule = "It is a list of pictures with prompts"
        return [], [Problem("the file holds no list", rule, 'Write [{"path": "a.png", "prompt": "…"}]', name)]
    prompts, problems = [], []
    for number, entry in enumerate(document.value):
        found = _read_entry(document, number, entry, folders)
        if isinstance(found, Problem):
            problems.append(found)
        else:
            prompts.append(found)
    return prompts, problems


def _read_entry(document: Document, number: int, entry: Any, folders: Sequence[Path]) -> ValidationPrompt | Problem:
    where = document.place(number)
    texts = {key: entry.get(key) for key in KEYS} if isinstance(entry, dict) else dict.fromkeys(KEYS)
    missing = [key for key in ("path", "prompt") if not isinstance(texts[key], str) or not str(texts[key]).strip()]
    unknown = [key for key in entry if key not in KEYS] if isinstance(entry, dict) else []
    if missing or unknown:
        return Problem(
            f"entry {number + 1}: " + (f"unknown key '{unknown[0]}'" if unknown else f"no {' and no '.join(missing)}"),
            "An entry is an object with `path` (a picture, or a clip whose first frame is taken), `prompt` and, where "
            "the picture's name is not to be the nickname, `shortname`",
            "Correct it, or remove the entry",
            where,
        )
    wanted = expand(str(texts["path"]))
    picture = next((folder / wanted for folder in folders if (folder / wanted).is_file()), None)
    if picture is None:
        looked = " and ".join(dict.fromkeys(str(folder / wanted) for folder in folders))
        return Problem(
            f'path = "{texts["path"]}": there is no such file', f"Looked at {looked}", "Correct the path", where
        )
    nickname = str(texts["shortname"] or picture.stem)
    return ValidationPrompt(nickname, str(texts["prompt"]).strip(), str(picture))
