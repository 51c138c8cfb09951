"""The templates of the pages in a run folder: no text of others becomes markup, no address leaves the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(template: str, **values: Any) -> str:
    """The page of a template in `templates/`, as text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    environment.filters["address"] = address
    return environment.get_template(template).render(**values)


def address(path: str) -> str:
    """A path below the page as an address: "%", "#" and "?" in file names would otherwise change it."""
    return quote(path, safe="/")
