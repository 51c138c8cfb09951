"""Paths that were written on another system, or for another working folder: what to write here instead."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

_DRIVE = re.compile(r"([A-Za-z]):[\\/]")


def advise_on_path(text: str, folders: Iterable[Path]) -> str:
    """What to write instead of the path `text`, which leads nowhere; empty if nothing is known.

    Args:
        text: The path as somebody wrote it.
        folders: Where a relative path may start.
    """
    if os.name == "nt":
        return ""
    if drive := _DRIVE.match(text):
        return f"This is a path of Windows; under WSL it begins with /mnt/{drive[1].lower()}/"
    turned = text.replace("\\", "/")
    if turned != text:
        there = any((folder / turned).exists() for folder in folders)
        return f'Write "{turned}"' + (", which is there" if there else ": folders are separated by / here")
    return ""
