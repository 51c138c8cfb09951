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
from simpletuner.caching.prompts import PromptCache, PromptSettings, cache_prompts
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
    **more: Any,
) -> PromptCache:
    settings = PromptSettings(folder, identity, length, batch_size=2, **more)
    return cache_prompts(texts, settings, load, emit=events.append)


def kept(encoder: HashingPromptEncoder, text: str) -> tuple[Tensor, Tensor]:
    """What the encoder gives for `text`, with zeros where the model does not look."""
    embeds, mask = encoder.encode([text])
    return embeds[0] * mask[0, :, None], mask[0]


def test_each_text_is_encoded_once_and_the_empty_prompt_always(tmp_path: Path, events: list[Event]) -> None:
    load = Counted(lambda: HashingPromptEncoder(LENGTH))
    texts = ["a red fox", "a blue bird", "a red fox"]
    first = build(tmp_path, texts, events, load)
    again = build(tmp_path, texts, events, load)
    assert (first.encoded, first.reused, again.encoded, again.reused, load.calls) == (3, 0, 0, 3, 1)
    expected, mask = kept(HashingPromptEncoder(LENGTH), "a red fox")
    embeds, stored_mask = again.read("a red fox")
    assert torch.equal(embeds, expected)
    assert torch.equal(stored_mask, mask)
    assert stored_mask.dtype == torch.bool
    again.stay_in_memory()
    again.read("a red fox")
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(b"")
        path.unlink()
    assert all(map(torch.equal, again.read("a red fox"), (expected, mask)))


def test_trap_24_a_dropped_caption_is_the_true_empty_prompt(tmp_path: Path, events: list[Event]) -> None:
    embeds, mask = build(tmp_path, ["a red fox"], events).read("")
    expected, expected_mask = kept(HashingPromptEncoder(LENGTH), "")
    assert torch.equal(embeds, expected)
    assert torch.equal(mask, expected_mask)
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
def test_trap_25_every_key_encodes_everything_again(
    identity: str, length: int, tmp_path: Path, events: list[Event]
) -> None:
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropping_the_padding_changes_no_bit_of_the_prediction(
    dtype: torch.dtype, miniature: Path, tmp_path: Path, events: list[Event]
) -> None:
    from simpletuner.config.sections.model import ModelSection
    from simpletuner.models.ltxvideo.family import FAMILY

    cpu = torch.device("cpu")
    source = FAMILY.resolve(ModelSection(model_family="ltxvideo", pretrained_model_name_or_path=str(miniature)))
    encoder = FAMILY.load_prompt_encoder(source, dtype, cpu)
    texts = ["a red ball moves left", ""]
    settings = PromptSettings(tmp_path, "miniature", source.token_length)
    cache = cache_prompts(texts, settings, lambda: encoder, emit=events.append)
    whole, mask = encoder.encode(texts)
    read = [cache.read(text) for text in texts]
    assert torch.equal(mask, torch.stack([row for _, row in read]))
    dropped = torch.stack([row for row, _ in read])
    # The encoder does give padding features of its own, so that there is something to drop.
    assert whole[~mask].abs().sum() > 0
    assert dropped[~mask].abs().sum() == 0
    assert torch.equal(whole[mask], dropped[mask])
    transformer = FAMILY.load_transformer(source, dtype, cpu)
    channels = transformer.config.in_channels
    noised = torch.randn(2, channels, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    rest = (torch.tensor([0.3, 0.9]), torch.full((2,), 25.0))
    with torch.no_grad():
        predictions = [
            FAMILY.predict(transformer, source, noised, rest[0], embeds, mask, rest[1]) for embeds in (whole, dropped)
        ]
    assert torch.equal(*predictions)
    stored = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert stored < whole.numel() * whole.element_size() / 2
