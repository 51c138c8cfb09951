"""What an entry does to the captions of its source: filters, then the instance prompt, then shuffled tags.

Pure functions of the entry, its filters and the path: the same data set gives the same texts on any
machine. The text that leaves here is what is encoded, and the key of its features. Nothing here
reads a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from simpletuner.config.caption_filters import CaptionFilter
from simpletuner.config.dataset import ClipDataset
from simpletuner.config.dataset_captions import CaptionShuffle
from simpletuner.runtime.seeds import stream_seed

SPACES = re.compile(r"[ \t\u00a0\u3000]+")
# Where a caption is cut into tags, and what stands between them afterwards. A sentence keeps its end mark.
TAG_BREAKS = {
    "comma": (re.compile(r"[,，]"), ", "),
    "space": (re.compile(r"\s+"), " "),
    "period": (re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*"), " "),
}
END_MARKS = tuple(".!?。！？")
ATTEMPTS_PER_ORDER = 8  # tags may repeat, so that a fresh order is not always new


def change_captions(
    captions: Sequence[str], dataset: ClipDataset, path: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The final captions of the file at `path`, and those of which the filters leave nothing.

    Args:
        captions: What the strategy found, at least one.
        dataset: The entry, with the filters of its store.
        path: Path in the data set; seeds the orders of tags.
    """
    emptied: tuple[str, ...] = ()
    filters = dataset.caption_filters
    if filters:
        filtered = [(text, filter_caption(text, filters)) for text in captions]
        emptied = tuple(text for text, rest in filtered if not rest)
        captions = [rest for _, rest in filtered if rest]
    if dataset.prepend_instance_prompt and not uses_instance_prompt_alone(dataset):
        captions = [f"{prompt} {text}" for text in captions for prompt in instance_prompts(dataset)]
    if dataset.caption_shuffle.enable:
        captions = [
            order
            for number, text in enumerate(captions)
            for order in shuffle_tags(text, dataset.caption_shuffle, f"{path}/{number}")
        ]
    return tuple(captions), emptied


def filter_caption(caption: str, filters: Sequence[CaptionFilter]) -> str:
    """The caption after all filters in their order, trimmed, with single spaces; may be empty."""
    for item in filters:
        caption = item.apply(caption)
    return SPACES.sub(" ", caption).strip()


def instance_prompts(dataset: ClipDataset) -> tuple[str, ...]:
    """The entry's instance prompts, trimmed; empty when it has none."""
    written = dataset.instance_prompt or ()
    prompts = (written,) if isinstance(written, str) else written
    return tuple(prompt.strip() for prompt in prompts if prompt.strip())


def uses_instance_prompt_alone(dataset: ClipDataset) -> bool:
    """Whether the instance prompt is the caption, so that no other source is asked."""
    return dataset.only_instance_prompt or dataset.caption_strategy == "instanceprompt"


def shuffle_tags(caption: str, rules: CaptionShuffle, name: str) -> tuple[str, ...]:
    """The caption in other orders of its tags, each different; the caption itself first if it is wanted.

    A caption without at least two movable tags stays as it is.

    Args:
        caption: Tags with separators between them.
        rules: The `caption_shuffle` block.
        name: With the block's seed it decides the orders.
    """
    tags = _split(caption, rules.split_on)
    fixed, movable = tags[: rules.position_start], tags[rules.position_start :]
    joiner = TAG_BREAKS[rules.split_on][1]
    orders: dict[str, None] = {}
    for order in _orders(movable, rules, name):
        if len(orders) == rules.count:
            break
        if order != movable:
            orders[joiner.join([*fixed, *order])] = None
    if rules.include_original or not orders:
        return (caption, *orders)
    return tuple(orders)


def _split(caption: str, split_on: str) -> list[str]:
    tags = [part.strip() for part in TAG_BREAKS[split_on][0].split(caption) if part.strip()]
    if split_on == "period":  # the last sentence may lack its mark, and may come to stand in the middle
        return [tag if tag.endswith(END_MARKS) else f"{tag}." for tag in tags]
    return tags


def _orders(tags: Sequence[str], rules: CaptionShuffle, name: str) -> Iterator[list[str]]:
    for attempt in range(rules.count * ATTEMPTS_PER_ORDER if len(set(tags)) > 1 else 0):
        stream = f"caption-shuffle/{name}/{attempt}"
        places = sorted(range(len(tags)), key=lambda place: stream_seed(rules.seed, stream, place))
        yield [tags[place] for place in places]
