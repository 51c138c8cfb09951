"""Names of repositories on the Hub as people write them: a name, owner/name, or an address.

Pure text; the Hub is not asked.
"""

from __future__ import annotations

import re
from pathlib import Path

LONGEST = 96  # characters of owner and name together, the Hub's own limit
_PART = re.compile(r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?", re.ASCII)
_ADDRESS = re.compile(r"^https?://[^/]+/(?:models/)?")


def read_repository(text: str) -> str:
    """ "name" or "owner/name" of what a person wrote.

    Raises:
        ValueError: If it cannot be the name of a repository; the message says why.
    """
    name = _ADDRESS.sub("", text.strip()).strip("/")
    parts = name.split("/")
    if len(parts) > 2:
        raise ValueError("It is `name`, `owner/name`, or the address of the repository")
    if not all(_PART.fullmatch(part) for part in parts):
        raise ValueError("Owner and name hold letters, digits, '-', '_' and '.', and begin and end with none of '-.'")
    if "--" in name or ".." in name or name.endswith(".git"):
        raise ValueError("A name holds no '--' and no '..', and does not end with '.git'")
    if len(name) > LONGEST:
        raise ValueError(f"A name has at most {LONGEST} characters")
    return name


def public_name(model: str) -> str:
    """What a published file calls a base model: its repository, or the last part of a folder's path.

    Where something lies on this machine is nobody else's business, and of no use to them.
    """
    is_repository = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model) is not None and not Path(model).exists()
    return model if is_repository else Path(model).name


def choose_repository(hub_model_id: str | None, project: str) -> str:
    """The repository of a run: the one that is named, or one called after its project.

    Raises:
        ValueError: If `hub_model_id` cannot be one; the rules have refused that before.
    """
    return read_repository(hub_model_id) if hub_model_id and hub_model_id.strip() else repository_of_project(project)


def repository_of_project(project: str) -> str:
    """A valid name made of the project's one, for runs that name no repository."""
    name = re.sub(r"[^A-Za-z0-9_]+", "-", project).strip("-")[:LONGEST].strip("-")
    return name or "ltxvideo-lora"
