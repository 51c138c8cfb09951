"""Keys of a data set entry that say where captions come from and how they are changed."""

from __future__ import annotations

from typing import Literal

from simpletuner.config.option import Section, option


class CaptionShuffle(Section):
    """The `caption_shuffle` block: the tags of a caption in other orders."""

    enable: bool = option(False, "Shuffle the tags of each caption.", "打乱每条字幕中的标签。")
    count: int = option(1, "Shuffled captions made of each.", "每条字幕生成的打乱条数。", ge=1, le=64)
    seed: int = option(0, "Seed of the orders.", "打乱顺序的种子。", ge=0, level="expert")
    split_on: Literal["comma", "space", "period"] = option("comma", "What stands between tags.", "标签之间的分隔符。")
    position_start: int = option(0, "Leading tags that stay in place.", "保持原位的前导标签数。", ge=0)
    include_original: bool = option(True, "Train the caption as written too.", "同时训练原始字幕。")


class CaptionKeys(Section):
    """Flat keys of an entry about its captions."""

    caption_strategy: str = option(
        "textfile",
        "Where captions come from; a list (`csv`) or a Hub data set brings its own unless this is given.",
        "字幕的来源；列表（`csv`）与 Hub 数据集默认使用自带字幕。",
        guide=True,
        catalog="simpletuner.config.catalogs.captions:CAPTIONS",
        value_aliases={"instance_prompt": "instanceprompt"},
    )
    instance_prompt: str | list[str] | None = option(
        None, "The caption of every file with `instanceprompt`; a list gives several.",
        "使用 `instanceprompt` 时所有文件的字幕；列表给出多条。",
    )  # fmt: skip
    prepend_instance_prompt: bool = option(
        False, "Put `instance_prompt` before each caption.", "在每条字幕前加上 `instance_prompt`。", level="advanced"
    )
    only_instance_prompt: bool = option(
        False, "Use `instance_prompt` alone.", "只使用 `instance_prompt`。", level="advanced"
    )
    disable_multiline_split: bool = option(
        False, "Keep a caption file of several lines as one caption.", "将多行字幕文件作为一条字幕。"
    )
    missing_captions: Literal["leave_out", "error"] = option(
        "leave_out",
        "What happens to files without a caption: left out and reported, or an error that names them all.",
        "没有字幕的文件如何处理：跳过并报告，或报错并列出全部文件。",
        value_aliases={"skip": "leave_out"},
    )
    caption_shuffle: CaptionShuffle = option(
        CaptionShuffle(), "Shuffle the tags of a caption.", "打乱字幕中的标签。", level="advanced"
    )
