"""The pages of a run folder, from their templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simpletuner.events.pages import open_templates


def render(template: str, **values: Any) -> str:
    """The page of a template in `templates/`, as text."""
    return open_templates(Path(__file__).parent / "templates").get_template(template).render(**values)
