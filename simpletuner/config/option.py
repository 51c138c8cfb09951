"""One option, told once: `option()` declares a field, `Section` groups fields.

Every surface (flags, JSON, help, schema, documentation, wizard) is computed from the facts given
here; nothing about an option is written anywhere else. This room never imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Level = Literal["basic", "advanced", "expert"]


@dataclass(frozen=True)
class OptionFacts:
    """What the table knows about an option beyond its type, default and range.

    Attributes:
        help: English help text, one or two sentences.
        zh: The same in Chinese.
        level: How soon a user meets it.
        unit: Unit of a number ("steps", "px", "frames"); empty when it has none.
        since: Version that introduced it.
        aliases: Old or alternative names that mean the same.
        guide: Whether the quickstart names it.
        planned: Non-empty when the feature behind the option is not built: what is missing. Such
            an option accepts only its default (or a neutral value) and is refused otherwise.
        planned_values: Values that are known but not built yet, each with what is missing.
        refused_values: Values that are known and will not be built, each with the reason.
        neutral: Values of a planned option which change nothing and are therefore accepted.
        refused: Non-empty when the option can never do anything for LTX-Video: the reason.
        accepted_note: Non-empty when a value is accepted although it changes nothing: the note.
        excludes: Options that must not be set together with this one.
        secret: Whether the value must never be printed.
        value_aliases: Other spellings of a value, each with the value it means.
        may_be_empty: Whether an empty text is a value of its own; elsewhere it means "not given".
        empty_fix: Non-empty when an empty text is an error instead of "not given": the fix.
        catalog: Catalog whose names are the choices ("simpletuner.config.catalogs.x:Y"); empty for none.
    """

    help: str
    zh: str = ""
    level: Level = "basic"
    unit: str = ""
    since: str = "0.1.0"
    aliases: tuple[str, ...] = ()
    guide: bool = False
    planned: str = ""
    planned_values: Mapping[Any, str] = field(default_factory=dict)
    refused_values: Mapping[str, str] = field(default_factory=dict)
    neutral: tuple[Any, ...] = ()
    refused: str = ""
    accepted_note: str = ""
    excludes: tuple[str, ...] = ()
    secret: bool = False
    value_aliases: Mapping[str, str] = field(default_factory=dict)
    may_be_empty: bool = False
    empty_fix: str = ""
    catalog: str = ""


def option(
    default: Any,
    help: str,  # noqa: A002 - reads as a keyword at every call
    zh: str = "",
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    aliases: Sequence[str] = (),
    neutral: Sequence[Any] = (),
    excludes: Sequence[str] = (),
    **facts: Any,
) -> Any:
    """Declare one option of a `Section`; see `OptionFacts` for the keyword arguments."""
    row = OptionFacts(
        help=help, zh=zh, aliases=tuple(aliases), neutral=tuple(neutral), excludes=tuple(excludes), **facts
    )
    return Field(default, description=help, ge=ge, gt=gt, le=le, lt=lt, json_schema_extra={"facts": row})  # type: ignore[dict-item]


class Section(BaseModel):
    """A group of options that one concern reads; frozen once validated."""

    # Most sections keep their defaults: only those that are given something build their validators.
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=False, protected_namespaces=(), defer_build=True
    )

    @classmethod
    def facts(cls, name: str) -> OptionFacts:
        """The facts of the option `name` of this section."""
        extra = cls.model_fields[name].json_schema_extra
        assert isinstance(extra, dict)
        return extra["facts"]  # type: ignore[return-value]
