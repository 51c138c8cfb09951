"""Defaults for every data set; an entry of the data set file wins over them."""

from __future__ import annotations

from typing import Literal

from simpletuner.config.option import Section, option

NO_DELETION = "nothing is ever deleted: files that cannot be used are left out and reported"
NSFW = "the classifier gate"
DIAGNOSTIC = "the report before step 1 and `metrics.jsonl` in the run folder tell the same"


class DataSection(Section):
    data_backend_config: str | None = option(
        None,
        "The data set file; absent means `multidatabackend.json` beside the configuration file.",
        "数据集文件；未给出时为配置文件旁的 `multidatabackend.json`。",
        guide=True,
    )
    resolution: float = option(
        480,
        "Target size; the unit is `resolution_type`.",
        "目标尺寸；单位由 `resolution_type` 决定。",
        gt=0,
        guide=True,
    )
    resolution_type: Literal["pixel", "area", "pixel_area"] = option(
        "pixel_area",
        "Unit of sizes: short edge, megapixels, or edge of the square of equal area.",
        "尺寸单位：短边、百万像素，或等面积正方形的边长。",
        guide=True,
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
    aspect_bucket_alignment: int = option(
        64, "Width and height are multiples of this.", "宽和高取此数的倍数。", unit="px", level="advanced", ge=32
    )
    minimum_image_size: float | None = option(
        None, "Smaller clips are left out; 0 means no limit.", "更小的视频不参与训练；0 表示不限。", ge=0, guide=True
    )
    maximum_image_size: float | None = option(
        None, "Larger clips are shrunk before they are cropped.", "更大的视频在裁剪前先缩小。", gt=0, guide=True
    )
    target_downsample_size: float | None = option(
        None, "Size to which larger clips are shrunk.", "较大视频缩小到的尺寸。", gt=0, guide=True
    )
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
    missing_captions: Literal["leave_out", "error"] = option(
        "leave_out",
        "What happens to files without a caption: left out and reported, or an error that names them all.",
        "没有字幕的文件如何处理：跳过并报告，或报错并列出全部文件。",
        value_aliases={"skip": "leave_out"},
    )
    caption_dropout_probability: float = option(
        0.1,
        "Chance that a caption is replaced by the empty prompt.",
        "字幕被空提示词替换的概率。",
        ge=0,
        le=1,
        guide=True,
    )
    framerate: float | None = option(
        None,
        "Frame rate of training and of validation videos; absent keeps every clip's own rate, "
        "with true positions, and exports 25.",
        "训练与验证视频的帧率；未给出时保留各视频自身帧率（位置编码真实），导出为 25。",
        gt=0,
        unit="fps",
    )
    disable_bucket_pruning: bool = option(
        False, "Keep buckets that hold fewer samples than one batch.", "保留样本数少于一个批次的分桶。", guide=True
    )
    delete_problematic_images: bool = option(
        False, "Move files that proved undecodable, with their captions, to the trash folder of the cache; nothing is "
        "deleted. Taken from the command line or from a data set's own entry only.",
        "将确认无法解码的文件及其字幕移入缓存的 trash 文件夹；不会删除任何文件。仅当在命令行或数据集条目中给出时有效。",
        guide=True,
    )  # fmt: skip
    delete_unwanted_images: bool = option(
        False, "What other trainers call deleting files that fail the size rules.",
        "（其他训练器）删除不符合尺寸规则的文件。",
        level="expert", accepted_note=NO_DELETION,
    )  # fmt: skip
    ignore_missing_files: bool = option(
        False, "Keep entries whose files are gone.", "保留文件已不存在的条目。", level="expert",
        accepted_note="files are listed in each run, so that a missing one is simply not trained",
    )  # fmt: skip
    data_backend_sampling: Literal["auto-weighting", "uniform"] = option(
        "auto-weighting",
        "What decides from which data set the next batch comes, besides `probability`: what each has left, or nothing "
        "else. Either way every clip is trained equally often in an epoch.",
        "除 `probability` 外由什么决定下一批来自哪个数据集：各自的剩余量，或仅由其决定。每轮中每个视频的训练次数不变。",
        level="advanced",
    )
    bucket_tail: Literal["partial", "merge"] = option(
        "partial",
        "What becomes of clips that do not fill a batch: the last batch of a bucket is smaller, or a bucket that "
        "cannot fill one batch is cut to the size of its nearest neighbour.",
        "不足一个批次的视频如何处理：分桶的最后一批较小，或将不足一批的分桶裁剪到最接近的分桶尺寸。",
        level="advanced",
    )
    aspect_bucket_disable_rebuild: bool = option(
        False, "Keep random aspects from epoch to epoch.", "随机宽高比在各轮之间保持不变。", level="expert",
        accepted_note="a random aspect or crop is drawn once per file and kept",
    )  # fmt: skip
    max_upscale_threshold: float | None = option(
        None, "Leave out clips whose area must grow by more than this share.",
        "面积需要放大超过此比例的视频不参与训练。", ge=0, level="advanced",
    )  # fmt: skip
    prepend_instance_prompt: bool = option(
        False, "Put `instance_prompt` before each caption.", "在每条字幕前加上 `instance_prompt`。", level="advanced"
    )
    only_instance_prompt: bool = option(
        False, "Use `instance_prompt` alone.", "只使用 `instance_prompt`。", level="advanced"
    )
    parquet_caption_column: str | None = option(
        None, "Column of the captions in `parquet` tables.", "`parquet` 表中字幕所在的列。", level="expert"
    )
    parquet_filename_column: str | None = option(
        None, "Column of the file names in `parquet` tables.", "`parquet` 表中文件名所在的列。", level="expert"
    )
    allow_dataset_oversubscription: bool = option(
        False,
        "Raise `repeats` where a bucket cannot fill a step, for data sets that do not set it themselves.",
        "分桶不足以填满一个优化器步时提高其 `repeats`（仅限未自行设置的数据集）。",
        level="advanced",
    )
    conditioning_multidataset_sampling: Literal["random"] = option(
        "random", "How paired data sets are drawn.", "成对数据集的抽取方式。", level="expert",
        planned_values={"combined": "paired conditioning data sets"},
    )  # fmt: skip
    dataloader_prefetch: bool = option(True, "Prepare batches in the background.", "在后台准备批次。", level="expert")
    dataloader_prefetch_qlen: int = option(
        10,
        "Batches prepared ahead at most; fewer when they would hold more than 1 GiB.",
        "最多预先准备的批次数；占用超过 1 GiB 时更少。",
        ge=1,
        unit="batches",
        level="expert",
    )
    debug_aspect_buckets: bool = option(
        False, "Print how buckets are filled.", "打印分桶过程。", level="expert", accepted_note=DIAGNOSTIC
    )
    debug_dataset_loader: bool = option(
        False, "Print what the loader does.", "打印加载器的行为。", level="expert", accepted_note=DIAGNOSTIC
    )
    print_filenames: bool = option(
        False, "Print the files of each batch.", "打印每个批次的文件名。", level="expert", planned="printing file names"
    )
    print_sampler_statistics: bool = option(
        False, "Print sampler statistics.", "打印采样统计。", level="expert", accepted_note=DIAGNOSTIC
    )
    enable_nsfw_check: bool = option(
        False,
        "Pass samples through a classifier before caching.",
        "缓存前用分类器检查样本。",
        level="expert",
        planned=NSFW,
    )
    nsfw_check_models: str | None = option(
        None, "Classifiers of the gate.", "检查所用的分类器。", level="expert", planned=NSFW
    )
    nsfw_check_min_votes: int = option(
        2, "Votes needed to reject.", "判定拒绝所需票数。", ge=1, level="expert", planned=NSFW
    )
    nsfw_check_backend_types: str = option(
        "all", "Storage kinds that are checked.", "检查的存储类型。", level="expert", planned=NSFW
    )
    nsfw_check_sample_types: str = option(
        "image,conditioning", "Sample kinds that are checked.", "检查的样本类型。", level="expert", planned=NSFW
    )
    delete_nsfw_images: bool = option(
        False, "Delete rejected files.", "删除被拒绝的文件。", level="expert", planned=NSFW
    )
    nsfw_check_video_frame_count: int = option(
        3, "Frames of a clip that are checked.", "每个视频检查的帧数。", ge=1, level="expert", planned=NSFW
    )
    nsfw_check_video_frame_selection: Literal["uniform", "first", "middle"] = option(
        "uniform", "Which frames are checked.", "检查哪些帧。", level="expert", planned=NSFW
    )
    nsfw_check_video_min_flagged_frames: int = option(
        1, "Flagged frames needed to reject.", "判定拒绝所需的标记帧数。", ge=1, level="expert", planned=NSFW
    )
