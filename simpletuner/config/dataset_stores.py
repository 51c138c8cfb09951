"""Stores of encoded captions, and the caption filters that they bring to the data sets which name them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from simpletuner.config.caption_filters import CaptionFilter, parse_filter
from simpletuner.config.dataset import ClipDataset, TextEmbeds
from simpletuner.config.dataset_entry import EntryReader
from simpletuner.config.documents import read_text
from simpletuner.config.paths import expand
from simpletuner.config.values import show
from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import Problem, Severity, UserError

KEY = "caption_filter_list"
# Keys that a store other than the default may have; `write_batch_size` is told to do nothing anyway.
MEANT_FOR_ANY_STORE = {"id", "dataset_type", "type", "disabled", "default", "cache_dir", "write_batch_size", KEY}


def default_store(stores: Sequence[TextEmbeds]) -> TextEmbeds | None:
    """The store of data sets that name none; None if there is no store at all."""
    return next((store for store in stores if store.default), stores[0] if stores else None)


def read_filters(value: Any, reader: EntryReader, folders: Sequence[Path]) -> tuple[CaptionFilter, ...]:
    """The items of `caption_filter_list`; broken ones are told with the line they stand on.

    Args:
        value: A list of items, or the path of a text file with one per line.
        reader: Takes the findings.
        folders: Where a relative path starts, in this order.
    """
    if isinstance(value, str):
        items = _lines(value, reader, folders)
    elif isinstance(value, list) and all(isinstance(item, str) for item in value):
        items = [(item, "") for item in value]
    else:
        reader.tell(f"{KEY} = {show(value)}", "It must be a list of texts, or the path of a text file",
                    'Write ["a photo of ", "s/cat/dog/"], or a file with one item per line', (KEY,))  # fmt: skip
        return ()
    filters = []
    for item, place in items:
        if not item:
            continue
        try:
            filters.append(parse_filter(item))
        except ValueError as error:
            fix = "Correct it; put a backslash before a special sign that is meant as it stands"
            reader.tell(
                f"{KEY}: {place}{show(item)}: {error}", "An item is a regular expression, or s/A/B/", fix, (KEY,)
            )
    return tuple(filters)


def _lines(text: str, reader: EntryReader, folders: Sequence[Path]) -> list[tuple[str, str]]:
    """(item, its place) of each line of the file; spaces at its ends are no part of an item."""
    candidates = [folder / expand(text) for folder in folders]
    path = next((found for found in candidates if _is_file(found)), None)
    if path is None:
        looked = " and ".join(dict.fromkeys(str(found) for found in candidates))
        reader.tell(f"{KEY} = {show(text)}: there is no such file", f"Looked at {looked}",
                    "Write the file, or correct the path", (KEY,))  # fmt: skip
        return []
    try:
        rows = read_text(path, text).splitlines()
    except UserError as error:
        for problem in error.problems:
            reader.tell(f"{KEY} = {show(text)}: {problem.what}", problem.rule, problem.fix, (KEY,))
        return []
    return [(row.strip(), f"{text}:{number}: ") for number, row in enumerate(rows, start=1)]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def find_store(dataset: ClipDataset, stores: Sequence[TextEmbeds]) -> TextEmbeds | None:
    """The store of a data set: the one it names, else the default; None if there is none."""
    if dataset.text_embeds is None:
        return default_store(stores)
    return next((store for store in stores if store.id == dataset.text_embeds), None)


def unknown_store(dataset: ClipDataset, stores: Sequence[TextEmbeds], disabled: Sequence[str], where: str) -> Problem:
    """What to tell when a data set names a store that is not there."""
    known = [store.id for store in stores]
    if dataset.text_embeds in disabled:
        rule, fix = "That entry is disabled", "Enable it, or remove this key"
    else:
        rule = f"It must be the id of a text_embeds entry ({', '.join(known) or 'there is none'})"
        fix = did_you_mean(str(dataset.text_embeds), known) or "Correct it, or remove this key"
    return Problem(f"text_embeds = {show(dataset.text_embeds)}", rule, fix, where)


def check_stores(
    stores: Sequence[TextEmbeds], written: Mapping[str, Mapping[str, str]], name: str
) -> Iterator[Problem]:
    """Findings about the stores of the file called `name`; `written` gives the keys of each and their places."""
    flagged = [store.id for store in stores if store.default]
    if len(stores) > 1 and len(flagged) != 1:
        yield Problem(
            f"{len(stores)} text_embeds entries, {len(flagged)} of them with default: true",
            "Exactly one of several must be the default", 'Set "default": true on one of them', name,
        )  # fmt: skip
        return
    main = default_store(stores)
    for store in stores:
        if main is None or store is main:
            continue
        if Path(str(store.cache_dir)) != Path(str(main.cache_dir)):
            yield Problem(
                f"cache_dir = {show(store.cache_dir)} differs from {show(main.cache_dir)} of the default store "
                f"'{main.id}'",
                "All encoded captions lie in one folder: they do not depend on their data set",
                "Remove cache_dir here, or write the folder of the default store",
                f"{written[store.id].get('cache_dir', name)}: {store.id}",
            )
        idle = sorted(written[store.id].keys() - MEANT_FOR_ANY_STORE)
        if idle:
            yield Problem(
                f"{', '.join(idle)} has no effect here: '{main.id}' is the default store",
                "How captions are encoded is the default store's matter; another one only brings caption filters",
                f"Write it for '{main.id}', or remove it",
                f"{written[store.id][idle[0]]}: {store.id}",
                Severity.WARNING,
            )
