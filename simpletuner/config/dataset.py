"""Entries of the data set file, after the global defaults have been merged in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import PositiveFloat, PrivateAttr

from simpletuner.config.caption_filters import CaptionFilter
from simpletuner.config.dataset_captions import CaptionKeys, CaptionShuffle
from simpletuner.config.dataset_places import HubColumns, ParquetColumns, PlaceKeys, PlaceType
from simpletuner.config.option import Section, option

MediaKind = Literal["video", "image"]
NOTHING_DELETED = "nothing is ever deleted: files that cannot be used are left out and reported"


class VideoRules(Section):
    """The `video` block of an entry."""

    num_frames: int | None = option(
        None,
        "Frames trained per clip, rounded down to 8k+1; absent means 5 seconds at 25 fps (121), or the "
        "whole clip with `resolution_frames`.",
        "每个视频训练的帧数，向下取 8k+1；未给出时为 25 fps 的 5 秒（121），`resolution_frames` 时为整个视频。",
        ge=1,
        unit="frames",
        guide=True,
    )
    min_frames: int | None = option(
        None,
        "Clips with fewer frames are left out; absent means num_frames.",
        "帧数更少的视频不参与训练；未给出时等于 num_frames。",
        ge=1,
        unit="frames",
        guide=True,
    )
    max_frames: int | None = option(
        None, "Clips with more frames are left out; absent trains a part of them, see `frame_sampling`.",
        "帧数更多的视频不参与训练；未给出时训练其中一部分，见 `frame_sampling`。", ge=1, unit="frames", guide=True,
    )  # fmt: skip
    bucket_strategy: Literal["aspect_ratio", "resolution_frames"] = option(
        "aspect_ratio",
        "Buckets by aspect with one frame count, or by size and frame count.",
        "按宽高比（同一帧数）分桶，或按尺寸与帧数分桶。",
        guide=True,
    )
    frame_interval: int | None = option(
        None,
        "Frame counts are first rounded down to a multiple of this (`resolution_frames` only).",
        "帧数先向下取此数的倍数（仅 `resolution_frames`）。",
        ge=1,
        unit="frames",
        guide=True,
    )
    frame_rate: PositiveFloat | Literal["source"] | None = option(
        None,
        "Trained frame rate: a number resamples by time, `source` keeps the clip's own; absent follows `framerate`.",
        "训练帧率：数字表示按时间重采样，`source` 保留视频自身帧率；未给出时跟随 `framerate`。",
        unit="fps",
    )
    frame_sampling: Literal["first", "middle", "random", "split"] = option(
        "first",
        "Which part of a long clip is trained; `split` cuts it into consecutive windows, each a sample. `random` "
        "draws a part once and keeps it, unless `vae_cache_clear_each_epoch` asks for another in each epoch.",
        "训练长视频的哪一部分；`split` 将其切成连续片段，各为一个样本；`random` 只抽取一次并保持不变，除非 "
        "`vae_cache_clear_each_epoch` 要求每轮重新抽取。",
    )
    split_at_scenes: bool = option(
        False,
        "Find scene changes and treat each scene as a clip of its own, so that no window spans a change (extra "
        "`scenes`).",
        "检测场景切换，将每个场景视为单独的视频，片段不跨越场景（需要 `scenes` 附加包）。",
        level="advanced",
    )
    is_i2v: bool | None = option(
        None,
        "Train image-to-video too: samples are given their first frame with the chance `ltx_i2v_prob`; absent follows "
        "`ltx_train_mode`.",
        "同时训练图生视频：样本以 `ltx_i2v_prob` 的概率获得首帧；未给出时跟随 `ltx_train_mode`。",
        guide=True,
    )


class ClipDataset(PlaceKeys, CaptionKeys):
    """A set of clips or images that is trained, every default filled in."""

    # No key of the entry: the filters of its store of captions, found when the file is read.
    _caption_filters: tuple[CaptionFilter, ...] = PrivateAttr(default=())

    @property
    def caption_filters(self) -> tuple[CaptionFilter, ...]:
        """What changes its captions, in order: the `caption_filter_list` of its `text_embeds` store."""
        return self._caption_filters

    @property
    def is_evaluation(self) -> bool:
        """Whether it is never trained: the loss on it is measured now and then."""
        return self.dataset_type == "eval"

    @property
    def kinds(self) -> tuple[MediaKind, ...]:
        """Kinds of files it takes; a set for evaluation takes clips and pictures."""
        return ("video", "image") if self.dataset_type == "eval" else (self.dataset_type,)

    @property
    def unnamed_kind(self) -> MediaKind:
        """What a file is taken for that has no name of its own, such as a row of a table."""
        if self.dataset_type != "eval":
            return self.dataset_type
        only_pictures = "image_column" in self.model_fields_set and "video_column" not in self.model_fields_set
        return "image" if only_pictures else "video"

    @property
    def is_redrawn(self) -> bool:
        """Whether each epoch trains other crops or other windows of its files."""
        moves = (self.crop and self.crop_style == "random") or (
            "video" in self.kinds and self.video.frame_sampling == "random"
        )
        return self.vae_cache_clear_each_epoch and moves and not self.is_evaluation

    @property
    def trains_i2v(self) -> bool:
        """Whether its clips may be given their first frame; a still picture has no second one."""
        return self.dataset_type == "video" and bool(self.video.is_i2v)

    def with_filters(self, filters: Sequence[CaptionFilter]) -> ClipDataset:
        """The same entry with these caption filters."""
        copy = self.model_copy()
        copy._caption_filters = tuple(filters)
        return copy

    id: str = option(..., "Unique name of the data set.", "数据集的唯一名称。", guide=True)
    dataset_type: Literal["video", "image", "eval"] = option(
        "video",
        "What the folder holds; `eval` holds clips or pictures that are never trained, on which the loss is measured.",
        "文件夹中的内容；`eval` 是不参与训练、仅用于测量损失的视频或图片集。",
        guide=True,
        planned_values={"conditioning": "conditioning data sets"},
    )
    type: PlaceType = option(
        "local", "Where the files are.", "文件所在位置。", guide=True, value_aliases={"parquet": "csv", "s3": "aws"},
        planned_values={value: f"data sets of type '{value}'" for value in ("webshart", "memory")},
    )  # fmt: skip
    disabled: bool = option(False, "Leave this entry out.", "停用此条目。", aliases=("disable",), guide=True)
    cache_dir_vae: str | None = option(None, "Folder of the encoded clips.", "已编码视频的文件夹。", guide=True)
    metadata_backend: Literal["discovery", "parquet", "huggingface"] = option(
        "discovery", "How sizes and lengths are found: by reading each header once, or from a table.",
        "获取尺寸与长度的方式：读取一次文件头，或来自表格。",
        guide=True, value_aliases={"json": "discovery"},
    )  # fmt: skip
    resolution: float = option(480, "Target size.", "目标尺寸。", gt=0, guide=True)
    resolution_type: Literal["pixel", "area", "pixel_area"] = option(
        "pixel_area", "Unit of all sizes.", "所有尺寸的单位。", guide=True
    )
    minimum_image_size: float | None = option(
        None, "Smaller files are left out; 0 means no limit.", "更小的文件不参与训练；0 表示不限。", ge=0, guide=True
    )
    maximum_image_size: float | None = option(
        None, "Larger files are shrunk before they are cropped.", "更大的文件在裁剪前先缩小。", gt=0, guide=True
    )
    target_downsample_size: float | None = option(
        None, "Size to which larger files are shrunk.", "较大文件缩小到的尺寸。", gt=0, guide=True
    )
    minimum_aspect_ratio: float | None = option(None, "Narrower files are left out.", "更窄的文件不参与训练。", gt=0)
    maximum_aspect_ratio: float | None = option(None, "Wider files are left out.", "更宽的文件不参与训练。", gt=0)
    crop: bool = option(
        False, "Cut to the aspect given by `crop_aspect`.", "裁剪为 `crop_aspect` 给出的宽高比。", guide=True
    )
    crop_style: Literal["center", "corner", "random"] = option(
        "center", "Where the window sits.", "裁剪窗口的位置。", guide=True, value_aliases={"centre": "center"},
        planned_values={"face": "cropping around faces"},
    )  # fmt: skip
    crop_aspect: Literal["square", "preserve", "closest", "random"] = option(
        "square", "Shape of the window.", "裁剪窗口的形状。", guide=True
    )
    crop_aspect_buckets: tuple[float, ...] | None = option(
        None,
        "Aspects for `closest` and `random`; also as objects with `aspect` and `weight`.",
        "`closest` 与 `random` 使用的宽高比；也可写成含 `aspect` 与 `weight` 的对象。",
    )
    crop_aspect_weights: tuple[float, ...] | None = option(
        None, "How often `random` takes each of `crop_aspect_buckets`; absent takes all alike.",
        "`random` 抽取 `crop_aspect_buckets` 中各项的权重；未给出时相同。", level="expert",
    )  # fmt: skip
    aspect_bucket_rounding: int = option(
        2,
        "Decimals of the aspect ratio in bucket names.",
        "分桶名称中宽高比的小数位数。",
        ge=1,
        le=9,
        guide=True,
        accepted_note="buckets are named by their exact size and frame count, so that no aspect is rounded",
    )
    aspect_bucket_alignment: int = option(32, "Sizes are multiples of this.", "尺寸取此数的倍数。", unit="px", ge=32)
    repeats: int = option(0, "Extra passes per epoch.", "每轮的额外遍数。", ge=0, le=100_000, guide=True)
    video: VideoRules = option(VideoRules(), "How frames are chosen.", "帧的选择方式。", guide=True)
    framerate: float | None = option(None, "The run's frame rate.", "本次运行的帧率。", gt=0, unit="fps")
    probability: float = option(
        1.0, "Weight of this set while data sets are mixed: how soon its batches come, not how many.",
        "混合数据集时的权重：决定批次出现的早晚，而非数量。", gt=0, level="advanced",
    )  # fmt: skip
    train_batch_size: int | None = option(
        None, "Own batch size of this set.", "此数据集自己的批大小。", ge=1, level="advanced"
    )
    text_embeds: str | None = option(
        None, "Id of the store whose caption filters apply; absent means the default store.",
        "字幕过滤规则所在的 text_embeds 条目 id；未给出时为默认条目。", level="expert",
    )  # fmt: skip
    image_embeds: str | None = option(
        None, "Id of an entry that stores encoded clips.", "存放已编码视频的条目 id。", level="expert",
        planned="separate stores for encoded clips",
    )  # fmt: skip
    is_regularisation_data: bool = option(
        False, "Prior data: the base model's own answer is the target, so the adapter leaves such clips alone.",
        "先验数据：以基础模型自身的预测为目标，使适配器不改变此类片段。", level="advanced",
        aliases=("is_regularization_data",),
    )  # fmt: skip
    disable_validation: bool = option(False, "Leave this set out of validation.",
                                      "验证时不使用此数据集。", level="expert",
                                      accepted_note="validation uses prompts, not data sets")  # fmt: skip
    max_upscale_threshold: float | None = option(
        None, "Leave out files whose area must grow by more than this share.",
        "面积需要放大超过此比例的文件不参与训练。", ge=0, level="advanced",
    )  # fmt: skip
    max_num_samples: int | None = option(
        None, "Use a fixed random part of the files.", "只使用固定的随机子集。", ge=1, level="advanced"
    )
    start_epoch: int = option(
        1, "First epoch in which the set takes part; with `start_step` both must be reached.",
        "从第几轮开始使用此数据集；与 `start_step` 须同时满足。", ge=0, level="expert", unit="epochs",
    )  # fmt: skip
    start_step: int = option(
        0, "First step from which the set may take part; counts where an epoch begins, so that each epoch is whole.",
        "从第几步起可以使用此数据集；在每轮开始时判断，使每轮保持完整。", ge=0, level="expert", unit="steps",
    )  # fmt: skip
    end_epoch: int | None = option(
        None, "Last epoch in which the set takes part; absent or 0 means no end.",
        "最后使用此数据集的轮次；未给出或 0 表示不结束。", ge=0, level="expert", unit="epochs",
    )  # fmt: skip
    end_step: int | None = option(
        None, "Last step of the set: it is left out of the epochs that begin later; absent or 0 means no end.",
        "使用此数据集的最后一步：之后开始的轮次不再使用；未给出或 0 表示不结束。", ge=0, level="expert", unit="steps",
    )  # fmt: skip
    vae_cache_clear_each_epoch: bool = option(
        False, "Draw `random` crops and windows anew in each epoch, and encode them when they are needed; none of "
        "them is kept.",
        "每轮重新抽取 `random` 裁剪与片段，用到时才编码，不保存。", level="advanced",
    )  # fmt: skip
    vae_cache_ondemand: bool = option(
        False, "Encode when first needed, and keep it.", "首次用到时才编码并保存。", level="advanced"
    )
    vae_cache_disable: bool = option(False, "Encode on demand, keep nothing.", "按需编码且不保存。", level="advanced")
    scan_for_errors: bool = option(
        False, "Verify every byte of the cached tensors at the start; otherwise their headers are compared then and "
        "the rest is verified when training first reads it.",
        "启动时校验缓存张量的每个字节；否则启动时只比对文件头，其余在训练首次读取时校验。", level="advanced",
    )  # fmt: skip
    skip_file_discovery: str | None = option(
        None, "Scans to skip.", "要跳过的扫描。", level="expert",
        accepted_note="files are listed in each run, but headers already read are taken from the index",
    )  # fmt: skip
    preserve_data_backend_cache: bool = option(
        False, "Skip the listing of files.", "跳过文件列表。", level="expert",
        accepted_note="headers already read are remembered anyway and files are listed in each run",
    )  # fmt: skip
    hash_filenames: bool = option(True, "Hash names in the cache.", "缓存中使用哈希文件名。", level="expert",
                                  accepted_note="names in the cache are always fingerprints")  # fmt: skip
    cache_file_suffix: str | None = option(None, "Name part of old metadata files.", "旧元数据文件名的一部分。",
                                           level="expert", accepted_note="there are no such files here")  # fmt: skip
    delete_problematic_images: bool = option(
        False, "Move files that proved undecodable, with their captions, to `trash` in `cache_dir_vae`; nothing is "
        "deleted. For `type: local`.",
        "将确认无法解码的文件及其字幕移入 `cache_dir_vae` 下的 `trash`；不会删除任何文件。用于 `type: local`。",
        level="expert",
    )  # fmt: skip
    delete_unwanted_images: bool = option(False, "Delete files that fail the size rules.", "删除不符合尺寸规则的文件。",
                                          level="expert", accepted_note=NOTHING_DELETED)  # fmt: skip
    disable_bucket_pruning: bool | None = option(
        None, "Keep small buckets of this set; absent follows the option of the run.",
        "保留此数据集的小分桶；未给出时跟随全局选项。", level="expert",
    )  # fmt: skip
    timestep_sampling_offset: float = option(
        0.0, "Shift of this set's noise levels.", "此数据集噪声水平的偏移。", level="expert",
        planned="noise levels per data set",
    )  # fmt: skip
    slider_strength: float | None = option(None, "Strength of a slider set.", "滑块数据集的强度。", level="expert",
                                           planned="slider adapters")  # fmt: skip
    conditioning_data: Any = option(None, "Paired conditioning set.", "成对的条件数据集。", level="expert",
                                    planned="conditioning data sets")  # fmt: skip


# Objects inside an entry, each read by its own table.
BLOCKS: Mapping[str, type[Section]] = {
    "video": VideoRules,
    "parquet": ParquetColumns,
    "huggingface": HubColumns,
    "caption_shuffle": CaptionShuffle,
}


class TextEmbeds(Section):
    """Where encoded captions are kept."""

    id: str = option(..., "Unique name of the store.", "存储的唯一名称。", guide=True)
    dataset_type: Literal["text_embeds"] = option("text_embeds", "Encoded captions.", "已编码字幕。", guide=True)
    type: Literal["local"] = option(
        "local", "Where the files are.", "文件所在位置。", guide=True,
        planned_values={value: f"data sets of type '{value}'" for value in ("aws", "memory")},
    )  # fmt: skip
    disabled: bool = option(False, "Leave this entry out.", "停用此条目。", aliases=("disable",), guide=True)
    cache_dir: str | None = option(None, "Folder of the encoded captions.", "已编码字幕的文件夹。", guide=True)
    default: bool = option(False, "Store used by data sets which name none.", "数据集未指定时使用的存储。", guide=True)
    write_batch_size: int = option(
        128,
        "Accepted; every entry is written when it is encoded.",
        "可以写；每条在编码后立即写入。",
        ge=1,
        guide=True,
        accepted_note="captions are written one by one, so that a crash loses none",
    )
    text_encoder_batch_size: int | None = option(
        None, "Captions encoded at once; absent follows the option of the run.",
        "一次编码的字幕数；未给出时跟随全局选项。", ge=1, level="advanced",
    )  # fmt: skip
    caption_filter_list: Any = option(
        None, "Rules that change captions: a text file with one per line, or a list.",
        "修改字幕的规则：每行一条的文本文件，或列表。", level="advanced",
    )  # fmt: skip
    text_cache_ondemand: bool = option(
        False, "Encode when first needed, and keep it.", "首次用到时才编码并保存。", level="advanced"
    )
    text_cache_disable: bool = option(False, "Encode on demand, keep nothing.", "按需编码且不保存。", level="advanced")
