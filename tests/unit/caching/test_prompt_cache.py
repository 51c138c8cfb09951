"""Text features: one path for captions, validation prompts and the empty prompt."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from simpletuner.caching.fingerprint import encoder_identity
from simpletuner.caching.prompts import PromptCache, cache_prompts
from simpletuner.core.errors import UserError
from simpletuner.events.types import Event, Noticed

from .conftest import Counted, HashingPromptEncoder

LENGTH = 8
IDENTITY = encoder_identity("hashing", dtype="float32")


def build(
    folder: Path,
    texts: Sequence[str],
    events: list[Event],
    load: Callable[[], Any] = lambda: HashingPromptEncoder(LENGTH),
    identity: str = IDENTITY,
    length: int = LENGTH,
) -> PromptCache:
    return cache_prompts(texts, folder, identity, length, load, batch_size=2, emit=events.append)


def test_each_text_is_encoded_once_and_the_empty_prompt_always(tmp_path: Path, events: list[Event]) -> None:
    load = Counted(lambda: HashingPromptEncoder(LENGTH))
    texts = ["a red fox", "a blue bird", "a red fox"]
    first = build(tmp_path, texts, events, load)
    again = build(tmp_path, texts, events, load)
    assert (first.encoded, first.reused, again.encoded, again.reused, load.calls) == (3, 0, 0, 3, 1)
    expected, mask = HashingPromptEncoder(LENGTH).encode(["a red fox"])
    embeds, stored_mask = again.read("a red fox")
    assert torch.equal(embeds, expected[0])
    assert torch.equal(stored_mask, mask[0])
    assert stored_mask.dtype == torch.bool


def test_a_dropped_caption_is_the_true_empty_prompt(tmp_path: Path, events: list[Event]) -> None:
    embeds, mask = build(tmp_path, ["a red fox"], events).read("")
    expected, expected_mask = HashingPromptEncoder(LENGTH).encode([""])
    assert torch.equal(embeds, expected[0])
    assert torch.equal(mask, expected_mask[0])
    assert int(mask.sum()) == 1
    # Validation asks the same cache for its unconditional prompt: bit for bit the same.
    assert torch.equal(build(tmp_path, ["", "other"], events).read("")[0], embeds)


@pytest.mark.parametrize(
    ("identity", "length"),
    [
        (encoder_identity("another encoder", dtype="float32"), LENGTH),
        (encoder_identity("hashing", dtype="bfloat16"), LENGTH),
        (IDENTITY, LENGTH + 4),
    ],
    ids=["encoder", "number format", "token length"],
)
def test_every_key_encodes_everything_again(identity: str, length: int, tmp_path: Path, events: list[Event]) -> None:
    build(tmp_path, ["a red fox"], events)
    changed = build(tmp_path, ["a red fox"], events, lambda: HashingPromptEncoder(length), identity, length)
    assert (changed.encoded, changed.reused, changed.stale) == (2, 0, 2)
    assert changed.read("")[0].shape[0] == length


def test_a_changed_caption_encodes_that_caption_only(tmp_path: Path, events: list[Event]) -> None:
    build(tmp_path, ["a red fox", "a bird"], events)
    changed = build(tmp_path, ["a red fox!", "a bird"], events)
    assert (changed.encoded, changed.reused, changed.stale) == (1, 2, 1)


def test_lost_words_are_told_at_every_start(tmp_path: Path, events: list[Event]) -> None:
    text = "one two three four five six seven eight nine"
    for _ in range(2):
        events.clear()
        build(tmp_path, [text, "short"], events)
        warnings = [event.text for event in events if isinstance(event, Noticed) and event.severity == "warning"]
        assert len(warnings) == 1
        assert "'eight nine'" in warnings[0]
        assert "tokenizer_max_length" in warnings[0]


def test_the_encoder_is_dropped(tmp_path: Path, events: list[Event]) -> None:
    alive: list[weakref.ref[HashingPromptEncoder]] = []

    def load() -> HashingPromptEncoder:
        encoder = HashingPromptEncoder(LENGTH)
        alive.append(weakref.ref(encoder))
        return encoder

    build(tmp_path, ["a red fox"], events, load)
    gc.collect()
    assert [reference() for reference in alive] == [None]


class BrokenEncoder(HashingPromptEncoder):
    """Overflows on one prompt, as T5 does in fp16."""

    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        embeds, mask = super().encode(prompts)
        embeds[[prompt == "bad" for prompt in prompts]] = torch.inf
        return embeds, mask


def test_features_that_are_not_finite_stop_the_run_unwritten(tmp_path: Path, events: list[Event]) -> None:
    with pytest.raises(UserError, match="'bad'") as caught:
        build(tmp_path, ["good", "fine", "bad"], events, lambda: BrokenEncoder(LENGTH))
    assert caught.value.exit_code == 5
    assert build(tmp_path, ["good", "fine", "bad"], events).reused == 3


def test_an_encoder_of_another_length_is_our_own_fault(tmp_path: Path, events: list[Event]) -> None:
    with pytest.raises(ValueError, match="8 tokens"):
        build(tmp_path, ["text"], events, lambda: HashingPromptEncoder(LENGTH + 1))


def test_odd_captions_are_kept(tmp_path: Path, events: list[Event]) -> None:
    texts = ["\u72d0\u72f8 \U0001f98a", "line\nbreak", "x" * 5000, "nul\0byte"]
    cache = build(tmp_path, texts, events)
    assert cache.encoded == 5
    assert build(tmp_path, texts, events).reused == 5
