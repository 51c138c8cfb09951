"""Templates of HTML pages: no text of others becomes markup, no address leaves the page's folder."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def open_templates(folder: Path) -> Environment:
    """The templates of a folder; a name that is not given is an error, and the filter `address` is there."""
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    environment.filters["address"] = address
    return environment


def address(path: str) -> str:
    """A path below the page as an address: "%", "#" and "?" in file names would otherwise change it."""
    return quote(path, safe="/")
