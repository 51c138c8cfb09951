"""Entries of the data set file, after the global defaults have been merged in."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveFloat

from simpletuner.config.option import Section, option

ON_DEMAND = "encoding on demand"
SPAN = "data sets that join or leave during a run"
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
        None, "Clips with more frames are left out.", "帧数更多的视频不参与训练。", ge=1, unit="frames", guide=True
    )
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
    frame_sampling: Literal["first", "middle", "random"] = option(
        "first",
        "Which part of a long clip is trained.",
        "训练长视频的哪一部分。",
        planned_values={"split": "splitting a long clip into several samples"},
    )
    is_i2v: bool | None = option(
        None,
        "Image-to-video training for this data set.",
        "此数据集是否进行图生视频训练。",
        guide=True,
        planned="image-to-video training",
        neutral=(False,),
    )


class ClipDataset(Section):
    """A folder of clips or images that is trained, every default filled in."""

    id: str = option(..., "Unique name of the data set.", "数据集的唯一名称。", guide=True)
    dataset_type: Literal["video", "image"] = option(
        "video",
        "What the folder holds.",
        "文件夹中的内容。",
        guide=True,
        planned_values={"eval": "evaluation sets", "conditioning": "conditioning data sets"},
    )
    type: Literal["local"] = option(
        "local", "Where the files are.", "文件所在位置。", guide=True,
        planned_values={
            value: f"data sets of type '{value}'" for value in ("aws", "csv", "huggingface", "webshart", "memory")
        },
    )  # fmt: skip
    disabled: bool = option(False, "Leave this entry out.", "停用此条目。", aliases=("disable",), guide=True)
    instance_data_dir: str = option(
        ..., "Folder that is searched, sub-folders included.", "要搜索的文件夹，包括子文件夹。", guide=True
    )
    cache_dir_vae: str | None = option(None, "Folder of the encoded clips.", "已编码视频的文件夹。", guide=True)
    metadata_backend: Literal["discovery"] = option(
        "discovery", "How sizes and lengths are found: by reading each header once.",
        "获取尺寸与长度的方式：读取一次文件头。",
        guide=True, value_aliases={"json": "discovery"},
        planned_values={value: f"facts about clips from {value}" for value in ("parquet", "huggingface")},
    )  # fmt: skip
    caption_strategy: Literal["textfile", "filename", "instanceprompt"] = option(
        "textfile", "Where captions come from.", "字幕的来源。", guide=True,
        value_aliases={"instance_prompt": "instanceprompt"},
        planned_values={value: f"captions from {value}" for value in ("parquet", "csv", "huggingface")},
    )  # fmt: skip
    instance_prompt: str | None = option(
        None, "The caption of every file with `instanceprompt`.", "使用 `instanceprompt` 时所有文件的字幕。"
    )
    disable_multiline_split: bool = option(
        False, "Keep a caption file of several lines as one caption.", "将多行字幕文件作为一条字幕。"
    )
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
        None, "Aspects for `closest` and `random`.", "`closest` 与 `random` 使用的宽高比。"
    )
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
    repeats: int = option(0, "Extra passes per epoch.", "每轮的额外遍数。", ge=0, guide=True)
    video: VideoRules = option(VideoRules(), "How frames are chosen.", "帧的选择方式。", guide=True)
    framerate: float | None = option(None, "The run's frame rate.", "本次运行的帧率。", gt=0, unit="fps")
    probability: float = option(
        1.0, "Weight when data sets are mixed.", "混合数据集时的权重。", ge=0, level="advanced",
        planned="weighting data sets (use repeats)",
    )  # fmt: skip
    train_batch_size: int | None = option(
        None, "Own batch size.", "自己的批大小。", ge=1, level="expert", planned="a batch size per data set"
    )
    text_embeds: str | None = option(
        None, "Id of the store for encoded captions.", "存放已编码字幕的条目 id。", level="expert",
        accepted_note="all captions share the default store: an encoded caption does not depend on its data set",
    )  # fmt: skip
    image_embeds: str | None = option(
        None, "Id of an entry that stores encoded clips.", "存放已编码视频的条目 id。", level="expert",
        planned="separate stores for encoded clips",
    )  # fmt: skip
    prepend_instance_prompt: bool = option(
        False, "Put `instance_prompt` before each caption.", "在每条字幕前加上 `instance_prompt`。", level="advanced",
        planned="prepending the instance prompt",
    )  # fmt: skip
    only_instance_prompt: bool = option(
        False, "Use `instance_prompt` alone.", "只使用 `instance_prompt`。", level="advanced",
        planned="this switch (write caption_strategy = instanceprompt instead)",
    )  # fmt: skip
    caption_shuffle: Any = option(None, "Shuffle the tags of a caption.", "打乱字幕中的标签。", level="advanced",
                                  planned="shuffling tags")  # fmt: skip
    is_regularisation_data: bool = option(
        False, "Train towards the base model's own prediction.", "以基础模型自身的预测为目标。", level="advanced",
        aliases=("is_regularization_data",), planned="prior data sets",
    )  # fmt: skip
    disable_validation: bool = option(False, "Leave this set out of validation.",
                                      "验证时不使用此数据集。", level="expert",
                                      accepted_note="validation uses prompts, not data sets")  # fmt: skip
    max_upscale_threshold: float | None = option(
        None, "Leave out files that need more enlargement.",
        "需要放大过多的文件不参与训练。", ge=0, le=1, level="advanced",
        planned="the enlargement limit",
    )  # fmt: skip
    max_num_samples: int | None = option(
        None, "Use a fixed random part of the files.", "只使用固定的随机子集。", ge=1, level="advanced",
        planned="training a random part of a data set",
    )  # fmt: skip
    start_epoch: int = option(1, "Epoch from which the set is used.", "从第几轮开始使用。", ge=0, level="expert",
                              planned=SPAN, neutral=(0,))  # fmt: skip
    start_step: int = option(
        0, "Step from which the set is used.", "从第几步开始使用。", ge=0, level="expert", planned=SPAN
    )
    end_epoch: int | None = option(None, "Epoch after which it is not.", "到第几轮为止。", ge=0, level="expert",
                                   planned=SPAN)  # fmt: skip
    end_step: int | None = option(
        None, "Step after which it is not.", "到第几步为止。", ge=0, level="expert", planned=SPAN
    )
    vae_cache_clear_each_epoch: bool = option(
        False, "Encode anew in each epoch.", "每轮重新编码。", level="advanced", planned="encoding anew in each epoch"
    )
    vae_cache_ondemand: bool = option(False, "Encode when first needed.", "首次用到时才编码。", level="advanced",
                                      planned=ON_DEMAND)  # fmt: skip
    vae_cache_disable: bool = option(False, "Encode on demand, keep nothing.", "按需编码且不保存。", level="advanced",
                                     planned=ON_DEMAND)  # fmt: skip
    scan_for_errors: bool = option(False, "Verify cached tensors at the start.", "启动时校验缓存。", level="advanced",
                                   accepted_note="each cached tensor is verified when it is read")  # fmt: skip
    skip_file_discovery: str | None = option(None, "Scans to skip.", "要跳过的扫描。", level="expert",
                                             planned="skipping scans at the start")  # fmt: skip
    preserve_data_backend_cache: bool = option(
        False, "Skip the listing of files.", "跳过文件列表。", level="expert",
        accepted_note="headers already read are remembered anyway and files are listed in each run",
    )  # fmt: skip
    hash_filenames: bool = option(True, "Hash names in the cache.", "缓存中使用哈希文件名。", level="expert",
                                  accepted_note="names in the cache are always fingerprints")  # fmt: skip
    cache_file_suffix: str | None = option(None, "Name part of old metadata files.", "旧元数据文件名的一部分。",
                                           level="expert", accepted_note="there are no such files here")  # fmt: skip
    delete_problematic_images: bool = option(False, "Delete files that cannot be decoded.", "删除无法解码的文件。",
                                             level="expert", accepted_note=NOTHING_DELETED)  # fmt: skip
    delete_unwanted_images: bool = option(False, "Delete files that fail the size rules.", "删除不符合尺寸规则的文件。",
                                          level="expert", accepted_note=NOTHING_DELETED)  # fmt: skip
    disable_bucket_pruning: bool | None = option(
        None, "Keep small buckets of this set.", "保留此数据集的小分桶。", level="expert",
        planned="keeping small buckets per data set (set the option for the run)", neutral=(False,),
    )  # fmt: skip
    timestep_sampling_offset: float = option(
        0.0, "Shift of this set's noise levels.", "此数据集噪声水平的偏移。", level="expert",
        planned="noise levels per data set",
    )  # fmt: skip
    slider_strength: float | None = option(None, "Strength of a slider set.", "滑块数据集的强度。", level="expert",
                                           planned="slider adapters")  # fmt: skip
    conditioning_data: Any = option(None, "Paired conditioning set.", "成对的条件数据集。", level="expert",
                                    planned="conditioning data sets")  # fmt: skip
    parquet: Any = option(None, "Columns of a parquet file.", "parquet 文件的列。", level="expert",
                          planned="captions and facts from parquet")  # fmt: skip
    huggingface: Any = option(None, "Columns of a Hub data set.", "Hub 数据集的列。", level="expert",
                              planned="data sets from the Hub")  # fmt: skip


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
        None, "Captions encoded at once.", "一次编码的字幕数。", ge=1, level="advanced",
        planned="a batch size per store (set the option for the run)",
    )  # fmt: skip
    caption_filter_list: Any = option(None, "Rules that change captions.", "修改字幕的规则。", level="advanced",
                                      planned="caption filters")  # fmt: skip
    text_cache_ondemand: bool = option(False, "Encode when first needed.", "首次用到时才编码。", level="advanced",
                                       planned=ON_DEMAND)  # fmt: skip
    text_cache_disable: bool = option(False, "Encode on demand, keep nothing.", "按需编码且不保存。", level="advanced",
                                      planned=ON_DEMAND)  # fmt: skip
