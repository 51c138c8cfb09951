"""The example configurations that travel inside the package."""

from __future__ import annotations

from pathlib import Path

from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import UserError

FOLDER = Path(__file__).resolve().parents[1] / "examples"


def preset_names() -> list[str]:
    """Names of all presets, sorted."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def preset_folder(name: str) -> Path:
    """The folder of the preset `name`.

    Raises:
        UserError: If there is none of that name; all names are listed.
    """
    names = preset_names()
    if name not in names:
        raise UserError(f"there is no example '{name}'", f"Available: {', '.join(names)}", did_you_mean(name, names))
    return FOLDER / name
