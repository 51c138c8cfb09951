"""Validation prompts: the main one and those of a prompt library."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from simpletuner.config.documents import is_comment, read_json
from simpletuner.config.run_config import ValidationPrompt
from simpletuner.core.errors import Problem, Severity, UserError

MAIN = "validation"
LONGEST = 80


def safe_nickname(nickname: str) -> str:
    """The nickname as a part of a file name: letters, digits, `.`, `_` and `-`, at most 80 of them."""
    safe = re.sub(r"[^\w.-]+", "_", nickname.strip())
    return re.sub(r"_+", "_", safe).strip("._-")[:LONGEST] or "prompt"


def read_library(path: Path, name: str) -> tuple[list[ValidationPrompt], list[Problem]]:
    """Prompts of a library file (nickname -> prompt, or -> {prompt or caption}), and findings about it."""
    try:
        document = read_json(path, name)
    except UserError as error:
        return [], list(error.problems)
    if not isinstance(document.value, dict):
        rule = "A prompt library is one object: nickname -> prompt"
        return [], [Problem("the file holds no object", rule, 'Write {"nickname": "the prompt"}', name)]
    prompts, problems = [], []
    for nickname, entry in document.value.items():
        if is_comment(nickname):
            continue
        text = entry.get("prompt", entry.get("caption")) if isinstance(entry, dict) else entry
        if not isinstance(text, str) or not text.strip():
            problems.append(
                Problem(
                    f"prompt '{nickname}' has no text",
                    "An entry is a text, or an object with `prompt` or `caption`",
                    "Write the prompt, or remove the entry",
                    where=document.place(nickname),
                )
            )
            continue
        prompts.append(ValidationPrompt(nickname, text.strip()))
    problems.extend(_placeholders(prompts, name))
    return prompts, problems


def _placeholders(prompts: Iterable[ValidationPrompt], name: str) -> list[Problem]:
    left = [prompt.nickname for prompt in prompts if "<token>" in prompt.prompt]
    if not left:
        return []
    return [
        Problem(
            f"{len(left)} prompts still hold the placeholder <token> ('{left[0]}' is the first)",
            "The model would read it as it stands",
            "Put the name of your subject in its place",
            where=name,
            severity=Severity.WARNING,
        )
    ]


def name_prompts(main: str | None, library: Iterable[ValidationPrompt]) -> tuple[ValidationPrompt, ...]:
    """All prompts with nicknames that are safe and unique, whatever the case of their letters."""
    taken: set[str] = set()
    named = []
    wanted = [ValidationPrompt(MAIN, main.strip())] if main and main.strip() else []
    for prompt in [*wanted, *library]:
        base = safe_nickname(prompt.nickname)
        nickname, number = base, 1
        while nickname.lower() in taken:
            number += 1
            nickname = f"{base}-{number}"
        taken.add(nickname.lower())
        named.append(replace(prompt, nickname=nickname))
    return tuple(named)
