"""The captions of one file: from a text beside it, a list, a table, its name, or one prompt for all.

A strategy finds the captions, `caption_rules.py` changes them. Every caption that comes out is encoded
ahead of training; which one a draw uses is decided in `batches.py`. Nothing here knows about models
or tokens. A new strategy is a function here and a row in `config/catalogs/captions.py`.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from simpletuner.config.catalogs.captions import CAPTIONS
from simpletuner.config.dataset import ClipDataset
from simpletuner.core.errors import Problem, UserError
from simpletuner.data.caption_files import Manifest, caption_texts, read_caption_file, read_manifest
from simpletuner.data.caption_rules import change_captions, instance_prompts, uses_instance_prompt_alone
from simpletuner.data.sample import Unfit, printable
from simpletuner.data.storage import FactTable, Listing, Storage, StoredFile

LINE_BREAKS = re.compile(r"\r\n|\r|\n")
MANIFESTS = ("metadata.jsonl", "captions.jsonl", "prompts.jsonl")
READ_AT_ONCE, SHARES = 64, 8  # caption files handed to a thread at once; pieces of work that each thread gets at least
SHOWN = 5  # emptied captions quoted in a note
NAMED = 500  # files named in one message; a terminal holds no more


class CaptionMemory(Protocol):
    """Caption files read in an earlier run. Called from one thread only."""

    def recall(self, file: StoredFile) -> str | None:
        """The text of a file of this path, size and version; None if it is not known."""

    def keep(self, file: StoredFile, text: str) -> None:
        """Remember the text of a file."""


class CaptionSource:
    """What a strategy may ask: the entry, its table, and the caption files that its place lists."""

    def __init__(
        self,
        dataset: ClipDataset,
        storage: Storage,
        listing: Listing,
        facts: FactTable | None,
        remembered: CaptionMemory | None,
    ) -> None:
        """See `CaptionReader`."""
        self.dataset = dataset
        self.facts = facts
        self.notes: list[str] = []
        self._storage = storage
        self._remembered = remembered
        self._listing = listing
        self._sidecar = CAPTIONS[dataset.caption_strategy].sidecar
        self._files = {file.path: file for file in listing.files if self._may_hold_captions(file.path)}
        self._texts: dict[str, str | Unfit] = {}
        self._manifests: dict[str, tuple[Manifest, ...]] = {}

    def read_ahead(self, paths: Iterable[str], workers: int) -> None:
        """Read the files beside `paths` with several threads; those remembered are not opened."""
        files = [file for file in map(self._sidecar_of, paths) if file is not None and file.path not in self._texts]
        missing = [file for file in files if not self._recall(file)]
        # Handing over one small file at a time costs more than reading it.
        size = min(READ_AT_ONCE, max(1, len(missing) // (SHARES * max(1, workers))))
        chunks = [missing[first : first + size] for first in range(0, len(missing), size)]
        with ThreadPoolExecutor(max(1, workers), thread_name_prefix="captions") as pool:
            for chunk, texts in zip(chunks, pool.map(self._open_all, chunks), strict=True):
                for file, text in zip(chunk, texts, strict=True):
                    self._store(file, text)

    def text_beside(self, path: str) -> tuple[str, str]:
        """(name, text) of the caption file beside `path`.

        Raises:
            Unfit: If there is none, or it is no text.
        """
        file = self._sidecar_of(path)
        if file is None:
            name = posixpath.splitext(posixpath.basename(path))[0] + self._sidecar
            raise Unfit(f"caption file '{printable(name)}' is missing")
        if file.path not in self._texts and not self._recall(file):
            self._store(file, self._open(file))
        text = self._texts.pop(file.path)  # each file is asked for once; texts of a large set are no longer needed
        if isinstance(text, Unfit):
            raise Unfit(text.reason)
        return posixpath.basename(file.path), text

    def manifests_of(self, path: str) -> tuple[Manifest, ...]:
        """The `.jsonl` lists that may name `path`: those of its folder first, then those above it."""
        found, folder = list(self._manifests_in("")), ""
        for part in path.split("/")[:-1]:
            folder += f"{part}/"
            found[:0] = self._manifests_in(folder)
        return tuple(found)

    def orphans(self) -> list[str]:
        """Caption files with no clip or picture of their name: often the misspelt ones."""
        if not self._sidecar:
            return []
        stems = {posixpath.splitext(file.path)[0] for file in self._listing.files if file.path not in self._files}
        return [path for path in self._files if posixpath.splitext(path)[0] not in stems]

    def _may_hold_captions(self, path: str) -> bool:
        if self._sidecar:
            return path.lower().endswith(self._sidecar)
        return self.dataset.caption_strategy == "jsonl" and path.rpartition("/")[2] in MANIFESTS

    def _sidecar_of(self, path: str) -> StoredFile | None:
        stem = posixpath.splitext(path)[0]
        return self._files.get(stem + self._sidecar) or self._files.get(stem + self._sidecar.upper())

    def _recall(self, file: StoredFile) -> bool:
        text = self._remembered.recall(file) if self._remembered and file.version else None
        if text is not None:
            self._texts[file.path] = text
        return text is not None

    def _open(self, file: StoredFile) -> str | Unfit:
        try:
            return read_caption_file(self._storage, file.path)
        except Unfit as unfit:
            return unfit

    def _open_all(self, files: Sequence[StoredFile]) -> list[str | Unfit]:
        return [self._open(file) for file in files]

    def _store(self, file: StoredFile, text: str | Unfit) -> None:
        self._texts[file.path] = text
        if self._remembered and file.version and isinstance(text, str):
            self._remembered.keep(file, text)

    def _manifests_in(self, folder: str) -> tuple[Manifest, ...]:
        if folder not in self._manifests:
            names = [f"{folder}{name}" for name in MANIFESTS if f"{folder}{name}" in self._files]
            self._manifests[folder] = tuple(read_manifest(self._storage, name) for name in names)
            self.notes += [note for manifest in self._manifests[folder] for note in manifest.notes]
        return self._manifests[folder]


class CaptionReader:
    """Gives the final captions of each file of one data set, and remembers which files have none."""

    def __init__(
        self,
        dataset: ClipDataset,
        storage: Storage,
        listing: Listing,
        facts: FactTable | None = None,
        remembered: CaptionMemory | None = None,
    ) -> None:
        """
        Args:
            dataset: The entry, with the filters of its store.
            storage: Where its files lie.
            listing: Everything that lies there, so that a missing caption file costs no access.
            facts: The table that `open_facts` gave.
            remembered: Texts of caption files from an earlier run.
        """
        self._dataset = dataset
        self._source = CaptionSource(dataset, storage, listing, facts, remembered)
        name = "instanceprompt" if uses_instance_prompt_alone(dataset) else dataset.caption_strategy
        self._find: Callable[[CaptionSource, str], Sequence[str]] = CAPTIONS.load(name)
        self._reads_sidecars = bool(CAPTIONS[name].sidecar)
        self._without: dict[str, str] = {}
        self._emptied: dict[str, str] = {}

    def read_ahead(self, paths: Iterable[str], workers: int) -> None:
        """Read the caption files of `paths` with `workers` threads, before `read` asks for each; optional."""
        if self._reads_sidecars:
            self._source.read_ahead(paths, workers)

    def read(self, path: str) -> tuple[str, ...]:
        """All captions of the clip or picture at `path`, at least one, as they are encoded.

        Raises:
            Unfit: If this file has no usable caption; the reason names the file or table that should hold it.
            UserError: If the data set's strategy lacks what it needs.
        """
        try:
            return self._read(path)
        except Unfit as unfit:
            self._without[path] = unfit.reason
            raise

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on captions that are not used, for the story before step 1."""
        notes = list(self._source.notes)
        orphans = self._source.orphans() if self._without else []
        if orphans:
            shown = ", ".join(orphans[:SHOWN]) + (" …" if len(orphans) > SHOWN else "")
            counts = f"files without a caption: {len(self._without)}; caption files without a clip: {len(orphans)}"
            notes.append(f"{counts} ({printable(shown)})")
        if self._emptied:
            shown = ", ".join(f"{path}: {text[:60]!r}" for path, text in list(self._emptied.items())[:SHOWN])
            notes.append(
                "captions of which caption_filter_list leaves nothing are not used; files concerned: "
                f"{len(self._emptied)} ({printable(shown)}{' …' if len(self._emptied) > SHOWN else ''})"
            )
        return tuple(notes)

    def problem(self) -> Problem | None:
        """Every file without a caption in one error, if the entry asks for that instead of leaving them out."""
        if self._dataset.missing_captions != "error" or not self._without:
            return None
        lines = [f"{printable(path)}: {self._without[path]}" for path in sorted(self._without)]
        rest = [f"and {len(lines) - NAMED} more"] if len(lines) > NAMED else []
        count = len(self._without)
        return Problem(
            f"data set '{self._dataset.id}': {count} file{'s have' if count > 1 else ' has'} no usable caption: "
            + "; ".join(lines[:NAMED] + rest),
            "missing_captions is 'error': no file may go without a caption",
            "Write the captions, or set missing_captions to 'leave_out' to train without these files",
        )

    def _read(self, path: str) -> tuple[str, ...]:
        found = tuple(text.strip() for text in self._find(self._source, path) if text.strip())
        if not found:
            raise Unfit(f"there is no caption by caption_strategy '{self._dataset.caption_strategy}'")
        captions, emptied = change_captions(found, self._dataset, path)
        if not captions:
            raise Unfit(f"caption_filter_list leaves nothing of the caption '{printable(found[0][:80])}'")
        if emptied:
            self._emptied[path] = emptied[0]
        return captions


# Strategies: (source, path) -> captions as they are written. ------------------------------------


def from_textfile(source: CaptionSource, path: str) -> Sequence[str]:
    """Lines of the `.txt` file beside the clip: each is a caption of its own.

    Raises:
        Unfit: If there is no such file, or it holds no caption.
    """
    name, text = source.text_beside(path)
    lines = [text] if source.dataset.disable_multiline_split else LINE_BREAKS.split(text)
    captions = [line.strip() for line in lines if line.strip()]
    if not captions:
        raise Unfit(f"caption file '{printable(name)}' is empty")
    return captions


def from_json(source: CaptionSource, path: str) -> Sequence[str]:
    """The `.json` file beside the clip: a text, a list of texts, or an object that holds one of these.

    Raises:
        Unfit: If there is no such file, it is not JSON, or it holds no caption.
    """
    name, text = source.text_beside(path)
    try:
        captions = caption_texts(json.loads(text))
    except json.JSONDecodeError as error:
        raise Unfit(f"caption file '{printable(name)}' is not JSON (line {error.lineno}: {error.msg})") from error
    except RecursionError as error:
        raise Unfit(f"caption file '{printable(name)}' is nested too deeply") from error
    except ValueError as error:
        raise Unfit(f"caption file '{printable(name)}' has {printable(str(error))}") from error
    if not captions:
        raise Unfit(f"caption file '{printable(name)}' has an empty caption")
    return captions


def from_jsonl(source: CaptionSource, path: str) -> Sequence[str]:
    """The lines for this file in the nearest list of its folder or above.

    Raises:
        Unfit: If no list names it, or only with an empty caption.
    """
    manifests = source.manifests_of(path)
    if not manifests:
        raise Unfit(f"there is no {', '.join(MANIFESTS[:-1])} or {MANIFESTS[-1]} in its folder or above")
    for manifest in manifests:
        captions = manifest.captions_of(path)
        if captions:
            return captions
        if captions is not None:
            raise Unfit(f"'{manifest.name}' has an empty caption for it")
    raise Unfit(f"{', '.join(repr(manifest.name) for manifest in manifests)} has no line for it")


def from_table(source: CaptionSource, path: str) -> Sequence[str]:
    """The row of the table that comes with the data set.

    Raises:
        Unfit: If the table has no row for the file, or an empty caption.
        UserError: If there is no table.
    """
    if source.facts is None:
        raise UserError(
            f"data set '{source.dataset.id}' has no table of captions",
            f"caption_strategy '{source.dataset.caption_strategy}' reads captions from a table",
            "Name one (parquet.path with metadata_backend 'parquet', csv_file with type 'csv'), or use 'textfile'",
        )
    row = source.facts.facts(path)
    if row is None:
        raise Unfit(f"{source.facts.place} has no row for it")
    if not row.captions:
        raise Unfit(f"{source.facts.place} has an empty caption for it")
    return row.captions


def from_filename(source: CaptionSource, path: str) -> Sequence[str]:
    """The file's name without its ending, underscores read as spaces.

    Raises:
        Unfit: If nothing is left.
    """
    caption = posixpath.splitext(posixpath.basename(path))[0].replace("_", " ").strip()
    if not caption:
        raise Unfit("the file name gives no caption")
    return [caption]


def from_instance_prompt(source: CaptionSource, path: str) -> Sequence[str]:
    """The entry's instance prompts, the same for every file.

    Raises:
        UserError: If it has none.
    """
    prompts = instance_prompts(source.dataset)
    if not prompts:
        raise UserError(
            f"data set '{source.dataset.id}' has no instance_prompt",
            "caption_strategy 'instanceprompt' uses it as the caption of every file",
            "Set instance_prompt, or use caption_strategy 'textfile'",
        )
    return prompts
