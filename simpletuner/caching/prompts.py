"""Text features of every caption and prompt, encoded once and kept.

Training captions, validation prompts, the negative prompt and the empty prompt (used when a caption
is dropped) share one store and one path, so training and validation can never see different
features for the same text. The text encoder is loaded only if something is missing.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from simpletuner.caching.fingerprint import prompt_facts
from simpletuner.caching.store import (
    DamagedEntryError,
    Key,
    check_entries,
    lost_entry,
    read_entry,
    sweep_litter,
    write_entry,
)
from simpletuner.core.errors import ExitCode, UserError
from simpletuner.events.types import Event, Noticed, StageAdvanced, StageFinished, StageStarted
from simpletuner.models.family import PromptEncoder

STAGE = "prompts"
_WORKERS = 4  # threads that verify entries
_SHOWN = 5  # truncated prompts told one by one


class PromptCache:
    """The finished text cache of one run.

    Attributes:
        encoded: Entries made in this start.
        reused: Entries that were there already.
        stale: Entries on the disk that nothing wants any more.
    """

    def __init__(self, keys: Mapping[str, Key], *, encoded: int, reused: int, stale: int) -> None:
        self._keys = dict(keys)
        self.encoded = encoded
        self.reused = reused
        self.stale = stale

    def read(self, text: str) -> tuple[Tensor, Tensor]:
        """Features [L, D] in the encoder's number format and mask [L] bool, True = real token.

        Raises:
            UserError: If the entry has been removed or changed since the start.
            KeyError: If `text` was not among the texts of `cache_prompts`.
        """
        key = self._keys[text]
        try:
            tensors, _ = read_entry(key, verify=False)
        except (FileNotFoundError, DamagedEntryError) as error:
            raise lost_entry(key, error) from error
        return tensors["embeds"], tensors["mask"]


def cache_prompts(
    texts: Iterable[str],
    folder: Path,
    identity: str,
    token_length: int,
    load_encoder: Callable[[], PromptEncoder],
    *,
    batch_size: int,
    emit: Callable[[Event], None],
) -> PromptCache:
    """Encode what is missing and give access to all; the empty prompt is always included.

    Args:
        texts: Final captions and prompts; repeated ones are encoded once.
        folder: Where entries are kept.
        identity: Text encoder as it is run, see `fingerprint.encoder_identity`.
        token_length: Tokens L per prompt, in training and validation alike.
        load_encoder: Called at most once, only if something is missing; what it returns is dropped
            before this function returns.
        batch_size: Prompts encoded at once, at least 1.
        emit: Receives progress, and a warning for each prompt whose end does not fit.

    Raises:
        UserError: If the disk is full or closed to writing (exit code 6; finished entries stay), or
            if the encoder gives values that are not finite (exit code 5).
    """
    started = time.monotonic()
    keys = {text: Key.of(folder, "prompt", prompt_facts(text, identity, token_length)) for text in ["", *texts]}
    sweep_litter([folder])
    status = check_entries(list(keys.values()), [folder], "prompt", workers=_WORKERS)
    for sentence in status.sentences:
        emit(Noticed("warning" if status.damaged and sentence == status.sentences[0] else "note", sentence))
    missing = [text for text, key in keys.items() if key not in status.usable]
    reused = len(keys) - len(missing)
    lost = {text: str(status.usable[key].get("lost_words", "")) for text, key in keys.items() if key in status.usable}
    emit(StageStarted(STAGE, "Encoding prompts", total=len(keys), unit="prompts", done=reused))
    if missing:
        lost.update(_encode_missing(missing, keys, token_length, load_encoder, batch_size, emit, reused))
        gc.collect()
        torch.cuda.empty_cache()  # does nothing where CUDA was never used
    _tell_lost_words({text: lost[text] for text in keys if lost[text]}, token_length, emit)
    summary = f"{len(missing)} encoded, {reused} reused"
    emit(StageFinished(STAGE, len(keys), time.monotonic() - started, summary))
    return PromptCache(keys, encoded=len(missing), reused=reused, stale=status.stale)


def _encode_missing(
    missing: Sequence[str],
    keys: Mapping[str, Key],
    token_length: int,
    load_encoder: Callable[[], PromptEncoder],
    batch_size: int,
    emit: Callable[[Event], None],
    done: int,
) -> dict[str, str]:
    """Encode and write `missing`; returns the words of each that did not fit."""
    encoder = load_encoder()
    lost = {}
    for start in range(0, len(missing), batch_size):
        texts = missing[start : start + batch_size]
        with torch.no_grad():
            embeds, masks = encoder.encode(texts)
        if embeds.shape[:2] != (len(texts), token_length) or masks.shape != (len(texts), token_length):
            raise ValueError(
                f"text encoder gave {tuple(embeds.shape)} and {tuple(masks.shape)} "
                f"for {len(texts)} prompts of {token_length} tokens"
            )
        for text, features, mask in zip(texts, embeds, masks, strict=True):
            _check_finite(text, features)
            lost[text] = encoder.lost_words(text)
            write_entry(keys[text], {"embeds": features, "mask": mask.bool()}, {"lost_words": lost[text]})
        done += len(texts)
        emit(StageAdvanced(STAGE, done))
    return lost


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
