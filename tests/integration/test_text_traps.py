"""Mistakes with captions that leave the loss curve looking normal, each with the test that catches it.

The numbers are those of the list of known traps. Traps 28 and 30 are caught where the code lies:
`test_padding_does_not_reach_the_output_and_words_do` and `test_trap_30_the_documented_replacement_replaces`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from simpletuner.caching.fingerprint import encoder_identity
from simpletuner.caching.prompts import PromptCache, PromptSettings, cache_prompts
from simpletuner.config.caption_filters import parse_filter
from simpletuner.config.dataset import ClipDataset
from simpletuner.config.sections.model import ModelSection
from simpletuner.data.batch_rules import BatchRules
from simpletuner.data.batches import BatchStream
from simpletuner.data.captions import CaptionReader
from simpletuner.data.sample import CropPlan, FramePlan, MediaInfo, Sample
from simpletuner.data.storage import LocalStorage
from simpletuner.events.types import Event, Noticed
from simpletuner.models.ltxvideo.family import FAMILY

CPU = torch.device("cpu")
LENGTH = 16
NEGATIVE = "the dog runs"
CAPTIONS = ("a red circle", "a blue lake", "the circle moves")
Load = Callable[..., object]


@pytest.fixture(scope="module")
def load(miniature: Path) -> Load:
    """load(length, dtype): the miniature's text encoder."""

    def give(length: int = LENGTH, dtype: torch.dtype = torch.float32) -> object:
        model = ModelSection(pretrained_model_name_or_path=str(miniature), tokenizer_max_length=length)
        return FAMILY.load_prompt_encoder(FAMILY.resolve(model), dtype, CPU)

    return give


def cache(
    folder: Path, load: Load, texts: Sequence[str], name: str = "encoder", length: int = LENGTH, dtype: str = "float32"
) -> tuple[PromptCache, list[Event]]:
    events: list[Event] = []
    settings = PromptSettings(folder, encoder_identity(name, dtype=dtype), length, batch_size=4)
    encode = lambda: load(length, {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype])  # noqa: E731
    return cache_prompts(texts, settings, encode, emit=events.append), events  # type: ignore[arg-type]


def clips(count: int = 12) -> list[Sample]:
    info = MediaInfo("video", 64, 64, 25.0, 9, 0.36, 0, 1.0, "h264", 1, "1")
    frames, crop = FramePlan(9, 25.0, 0.0), CropPlan(64, 64, 0, 0, 64, 64)
    return [Sample("set", f"{number}.mp4", info, frames, crop, CAPTIONS, 1) for number in range(count)]


def stream(read: Callable[[str], tuple[Tensor, Tensor]], dropout: float) -> BatchStream:
    rules = BatchRules(batch_size=2)
    return BatchStream(
        clips(), lambda sample: torch.zeros(4, 2, 2, 2), read, rules, seed=3, caption_dropout=dropout, prefetch=0
    )


def test_trap_24_a_dropped_caption_is_the_unconditional_prompt_of_validation(tmp_path: Path, load: Load) -> None:
    """Trap 24: not zeros, not another length, not an empty mask, but what the encoder makes of ""."""
    prompts, _ = cache(tmp_path, load, [*CAPTIONS, NEGATIVE])
    unconditional, mask = prompts.read("")
    expected, expected_mask = load().encode([""])  # type: ignore[attr-defined]
    assert torch.equal(mask, expected_mask[0])
    torch.testing.assert_close(unconditional[mask], expected[0][mask])  # padding is never looked at
    assert int(mask.sum()) == 1
    assert unconditional.abs().sum() > 0
    for batch in islice(stream(prompts.read, dropout=1.0), 6):
        assert batch.captions == ("", "")
        assert all(torch.equal(row, unconditional) for row in batch.prompt_embeds)
        assert all(torch.equal(row, mask) for row in batch.prompt_mask)


@pytest.mark.parametrize("change", [{"name": "another encoder"}, {"dtype": "bfloat16"}, {"length": LENGTH + 8}])
def test_trap_25_another_encoder_precision_or_length_encodes_all_again(
    tmp_path: Path, load: Load, change: dict[str, str | int]
) -> None:
    """Trap 25: nothing of an old cache is used once the encoder is run in another way."""
    first, _ = cache(tmp_path, load, CAPTIONS)
    again, _ = cache(tmp_path, load, CAPTIONS)
    changed, _ = cache(tmp_path, load, CAPTIONS, **change)  # type: ignore[arg-type]
    assert (first.encoded, again.encoded, changed.encoded) == (4, 0, 4)


def test_trap_25_changed_filters_encode_what_they_change(tmp_path: Path, load: Load) -> None:
    """Trap 25: the key is the text after the filters, so that a changed list finds no stale entry."""

    def captions(*items: str) -> list[str]:
        entry = ClipDataset(id="set", caption_strategy="textfile").with_filters([parse_filter(item) for item in items])
        storage = LocalStorage(tmp_path)
        reader = CaptionReader(entry, storage, storage.list_files())
        return [text for number in range(2) for text in reader.read(f"{number}.mp4")]

    (tmp_path / "0.txt").write_text("a red circle")
    (tmp_path / "1.txt").write_text("a blue lake")
    plain, _ = cache(tmp_path / "cache", load, captions())
    filtered, _ = cache(tmp_path / "cache", load, captions("s/red/green/"))
    all_filtered, _ = cache(tmp_path / "cache", load, captions("a "))
    assert (plain.encoded, filtered.encoded, all_filtered.encoded) == (3, 1, 2)
    text = captions("s/red/green/")[0]
    (expected,), (mask,) = load().encode([text])  # type: ignore[attr-defined]
    torch.testing.assert_close(filtered.read(text)[0][mask], expected[mask])


def test_trap_26_the_text_encoder_runs_without_a_mask(miniature: Path, load: Load) -> None:
    """Trap 26: features of a short prompt are those of the bare encoder that attends to its padding."""
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer = AutoTokenizer.from_pretrained(miniature / "tokenizer")
    bare = T5EncoderModel.from_pretrained(miniature / "text_encoder").eval()
    tokens = tokenizer(["a red circle"], padding="max_length", max_length=LENGTH, return_tensors="pt")
    ours, mask = load().encode(["a red circle"])  # type: ignore[attr-defined]
    with torch.no_grad():
        torch.testing.assert_close(ours, bare(tokens.input_ids).last_hidden_state)
        masked = bare(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    assert torch.equal(mask, tokens.attention_mask.bool())
    assert not torch.allclose(ours[mask], masked[mask], atol=1e-3)


def test_trap_27_training_and_validation_have_one_token_length(tmp_path: Path, load: Load) -> None:
    """Trap 27: captions, prompts and the empty prompt share the length; words beyond it are named."""
    long = " ".join(["red"] * (LENGTH - 1)) + " blue lake"
    prompts, events = cache(tmp_path, load, [*CAPTIONS, NEGATIVE, long])
    (batch,) = islice(stream(prompts.read, dropout=0.0), 1)
    lengths = {prompts.read(text)[0].shape[0] for text in (*CAPTIONS, NEGATIVE, long, "")}
    assert lengths == {LENGTH} == {batch.prompt_embeds.shape[1], batch.prompt_mask.shape[1]}
    warnings = [event.text for event in events if isinstance(event, Noticed) and event.severity == "warning"]
    assert len(warnings) == 1
    assert "'blue lake'" in warnings[0]


def test_trap_29_resuming_drops_and_chooses_the_same_captions() -> None:
    """Trap 29: 20 batches at once equal 10, a restart from the saved state, and 10 more."""

    def read(text: str) -> tuple[Tensor, Tensor]:
        return torch.zeros(2, 2), torch.ones(2, dtype=torch.bool)

    def captions(batches: Iterator[object], count: int) -> list[tuple[str, ...]]:
        return [batch.captions for batch in islice(batches, count)]  # type: ignore[attr-defined]

    straight = captions(stream(read, 0.4), 20)
    first = stream(read, 0.4)
    begun = captions(first, 10)
    torch.manual_seed(0)  # the global generators of another process
    second = stream(read, 0.4)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert begun + captions(second, 10) == straight
    assert {"", *CAPTIONS} == {text for row in straight for text in row}
