"""Text features of every caption and prompt, encoded once and kept.

Training captions, validation prompts, the negative prompt and the empty prompt (used when a caption
is dropped) share one store and one path, so training and validation can never see different
features for the same text. The text encoder is loaded only if something is missing. Only real tokens
are kept: no part of the model looks at the features of padding (docs/decisions/0004-caches.md).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from simpletuner.caching.building import Turn, open_site, tidy
from simpletuner.caching.entry import DamagedEntryError
from simpletuner.caching.fingerprint import prompt_facts
from simpletuner.caching.store import EntryReader, EntryWriter, Key, Status, Storing, check_entries, lost_entry
from simpletuner.core.errors import ExitCode, UserError
from simpletuner.events.types import Event, Noticed, StageAdvanced, StageFinished, StageStarted
from simpletuner.models.family import PromptEncoder
from simpletuner.runtime.host import release_memory

STAGE = "prompts"
KIND = "prompt"
_WORKERS = 4  # threads that look at entries
_SHOWN = 5  # truncated prompts told one by one

Features = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class PromptSettings:
    """How text features are made and kept.

    Attributes:
        folder: Where entries are kept.
        identity: Text encoder as it is run, see `fingerprint.encoder_identity`.
        token_length: Tokens L per prompt, in training and validation alike.
        storing: Form of new entries.
        batch_size: Prompts encoded at once, at least 1.
        on_demand: Whether a prompt is encoded when it is first read.
        unwritten: Whether nothing is kept of what is encoded on demand.
        in_memory: Whether features stay in memory once they are read.
        shared: Whether others keep their prompts in the folder too, so that what is not wanted here is no waste.
    """

    folder: Path
    identity: str
    token_length: int
    storing: Storing = field(default_factory=Storing)
    batch_size: int = 1
    on_demand: bool = False
    unwritten: bool = False
    in_memory: bool = False
    shared: bool = False

    def facts(self, text: str) -> dict[str, object]:
        """Everything that shapes the entry of `text`."""
        return prompt_facts(text, self.identity, self.token_length)


class PromptCache:
    """The finished text cache of one run; may be read by several threads.

    Attributes:
        encoded: Entries made in this start.
        reused: Entries that were there already, or that another process made meanwhile.
        on_demand: Texts that will be encoded when they are first read.
        stale: Entries on the disk that nothing wants any more.
    """

    def __init__(
        self, keys: Mapping[str, Key], outcome: _Outcome, encoder: _TextEncoder, emit: Callable[[Event], None]
    ) -> None:
        self._keys = dict(keys)
        self._reader = outcome.reader
        self._encoder = encoder
        self._settings = encoder.settings
        self._emit = emit
        self._verified: set[Key] = set()
        self._memory: dict[str, Features] = {}
        self._stays = encoder.settings.in_memory
        self._waiting = set(outcome.on_demand)
        self.encoded = outcome.encoded
        self.reused = outcome.reused
        self.on_demand = len(outcome.on_demand)
        self.stale = outcome.stale

    def stay_in_memory(self) -> None:
        """From now on keep what is read."""
        self._stays = True

    def read(self, text: str) -> Features:
        """Features [L, D] in the encoder's number format, zero at padding, and mask [L] bool, True = real token.

        The first read of an entry verifies its checksum. An entry that is damaged or gone is made again, and that
        is told.

        Raises:
            UserError: If the encoder's values are not finite (exit code 5).
            KeyError: If `text` was not among the texts of `cache_prompts`.
        """
        if text in self._memory:
            return self._memory[text]
        key = self._keys[text]
        try:
            tensors, _ = self._reader.read(key, verify=key not in self._verified)
            features = _with_padding(tensors)
            self._verified.add(key)
        except (FileNotFoundError, DamagedEntryError) as error:
            features = self._make(text, key, error)
        if self._stays:
            self._memory[text] = features
        return features

    def _make(self, text: str, key: Key, error: Exception) -> Features:
        if text not in self._waiting or not isinstance(error, FileNotFoundError):
            self._emit(Noticed("warning", f"{lost_entry(key, error).problems[0].what}; it is made again."))
            self._reader.discard(key)
        tensors, lost = next(self._encoder.encode([text]))
        if lost and text in self._waiting:
            _tell_lost_words({text: lost}, self._settings.token_length, self._emit)
        if not self._settings.unwritten:
            # A file each: what is read in any order has no shard to fill, and needs no closing.
            writer = EntryWriter("", Storing("files", self._settings.storing.compress))
            writer.write(key, self._settings.facts(text), tensors, {"lost_words": lost})
            self._waiting.discard(text)
        return _with_padding(tensors)


@dataclass
class _Outcome:
    reader: EntryReader
    on_demand: list[str] = field(default_factory=list)
    encoded: int = 0
    reused: int = 0
    stale: int = 0


def cache_prompts(
    texts: Iterable[str],
    settings: PromptSettings,
    load_encoder: Callable[[], PromptEncoder],
    *,
    emit: Callable[[Event], None],
) -> PromptCache:
    """Encode what is missing and give access to all; the empty prompt is always included.

    Args:
        texts: Final captions and prompts; repeated ones are encoded once.
        settings: How features are made and kept.
        load_encoder: Called only if something is missing, and once; what it returns is dropped before this
            function returns. Called again for what is encoded on demand.
        emit: Receives progress, and a warning for each prompt whose end does not fit.

    Raises:
        UserError: If the disk is full or closed to writing (exit code 6; finished entries stay), or
            if the encoder gives values that are not finite (exit code 5).
    """
    started = time.monotonic()
    keys = find_keys(texts, settings)
    reader = EntryReader([settings.folder])
    status = check_prompts(list(keys.values()), reader)
    if settings.shared:
        status = replace(status, stale=0)
    for sentence in status.sentences:
        emit(Noticed("warning" if status.damaged and sentence == status.sentences[0] else "note", sentence))
    missing = [text for text, key in keys.items() if key not in status.usable]
    lost = {text: str(status.usable[key].get("lost_words", "")) for text, key in keys.items() if key in status.usable}
    outcome = _Outcome(reader, reused=len(keys) - len(missing), stale=status.stale)
    encoder = _TextEncoder(settings, load_encoder)
    total = len(keys) - len(missing) if settings.on_demand else len(keys)
    emit(StageStarted(STAGE, "Encoding prompts", total=total, unit="prompts", done=outcome.reused))
    if settings.on_demand:
        outcome.on_demand = missing
    elif missing:
        lost.update(_encode_missing(missing, keys, encoder, status.suspects, outcome, emit))
        encoder.drop()
    else:
        tidy([settings.folder])
    _tell_lost_words({text: lost[text] for text in keys if lost.get(text)}, settings.token_length, emit)
    summary = f"{outcome.encoded} encoded, {outcome.reused} reused"
    if outcome.on_demand:
        summary += f", {len(outcome.on_demand)} on demand"
    emit(StageFinished(STAGE, total, time.monotonic() - started, summary))
    return PromptCache(keys, outcome, encoder, emit)


def find_keys(texts: Iterable[str], settings: PromptSettings) -> dict[str, Key]:
    """What must be in the cache: each text once, the empty one included, with its key."""
    return {text: Key.of(settings.folder, KIND, settings.facts(text)) for text in ["", *texts]}


def check_prompts(keys: Sequence[Key], reader: EntryReader) -> Status:
    """Compare what is there with what must be; see `store.check_entries`."""
    return check_entries(reader, keys, KIND, workers=_WORKERS)


def _encode_missing(
    missing: Sequence[str],
    keys: Mapping[str, Key],
    encoder: _TextEncoder,
    suspects: Collection[Key],
    outcome: _Outcome,
    emit: Callable[[Event], None],
) -> dict[str, str]:
    """Encode and write `missing`; returns the words of each that did not fit."""
    settings, lost = encoder.settings, {}

    def take_found(turn: Turn[str]) -> None:
        for text in turn.drain():
            lost[text] = str(outcome.reader.peek(keys[text]).get("lost_words", ""))
            outcome.reused += 1

    with open_site(outcome.reader, [settings.folder], settings.storing, suspects) as site:
        for turn in site.turns(missing, keys.__getitem__):
            while texts := list(islice(turn, settings.batch_size)):
                for text, (tensors, words) in zip(texts, encoder.encode(texts), strict=True):
                    site.writer.write(keys[text], settings.facts(text), tensors, {"lost_words": words})
                    site.release(keys[text])
                    lost[text] = words
                    outcome.encoded += 1
                take_found(turn)
                emit(StageAdvanced(STAGE, outcome.encoded + outcome.reused))
            take_found(turn)
    return lost


class _TextEncoder:
    """A text encoder that is loaded when the first text comes; may be used by several threads."""

    def __init__(self, settings: PromptSettings, load_encoder: Callable[[], PromptEncoder]) -> None:
        self.settings = settings
        self._load_encoder = load_encoder
        self._encoder: PromptEncoder | None = None
        self._one_at_a_time = threading.Lock()

    def encode(self, texts: Sequence[str]) -> Iterator[tuple[dict[str, Tensor], str]]:
        """The tensors to keep of each text, and its words that did not fit.

        Raises:
            UserError: When the turn comes to a text whose values are not finite (exit code 5).
        """
        with self._one_at_a_time:
            if self._encoder is None:
                self._encoder = self._load_encoder()
            with torch.inference_mode():
                embeds, masks = self._encoder.encode(texts)
            length = self.settings.token_length
            if embeds.shape[:2] != (len(texts), length) or masks.shape != (len(texts), length):
                raise ValueError(
                    f"text encoder gave {tuple(embeds.shape)} and {tuple(masks.shape)} "
                    f"for {len(texts)} prompts of {length} tokens"
                )
            words = [self._encoder.lost_words(text) for text in texts]
        for text, features, mask, lost in zip(texts, embeds.cpu(), masks.bool().cpu(), words, strict=True):
            _check_finite(text, features)
            yield {"embeds": features[mask], "mask": mask}, lost

    def drop(self) -> None:
        """Forget the encoder; the next text loads it again."""
        self._encoder = None
        release_memory()


def _with_padding(tensors: Mapping[str, Tensor]) -> Features:
    mask, kept = tensors["mask"].clone(), tensors["embeds"]
    embeds = torch.zeros((len(mask), *kept.shape[1:]), dtype=kept.dtype)
    embeds[mask] = kept
    return embeds, mask


def _check_finite(text: str, features: Tensor) -> None:
    if not bool(torch.isfinite(features).all()):
        raise UserError(
            f"the text encoder gave values that are not finite numbers for the prompt {text[:80]!r}",
            "Text features must be finite, or every step that uses them is lost",
            "Use mixed_precision=bf16 or no; T5 overflows in fp16",
            exit_code=ExitCode.NUMERICS,
        )


def _tell_lost_words(lost: Mapping[str, str], token_length: int, emit: Callable[[Event], None]) -> None:
    for text, words in list(lost.items())[:_SHOWN]:
        emit(
            Noticed(
                "warning",
                f"the prompt {_shortened(text)!r} is longer than {token_length} tokens; the model does not see its "
                f"end: {words!r}. Shorten it, or raise tokenizer_max_length.",
            )
        )
    if len(lost) > _SHOWN:
        emit(Noticed("warning", f"{len(lost) - _SHOWN} more prompts are longer than {token_length} tokens."))


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
