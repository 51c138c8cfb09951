"""A small random checkpoint of one's own, to try things with before any download."""

from __future__ import annotations

from pathlib import Path

from simpletuner.models.ltxvideo.miniature import write_miniature


def make_miniature(folder: Path, release: str) -> Path:
    """Write a small random LTX-Video checkpoint of `release` ("0.9.5") into `folder`; gives the folder.

    Raises:
        UserError: If there is no such release, or the folder cannot be written.
    """
    return write_miniature(folder, release)
