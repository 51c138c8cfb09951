"""Names under which the run is reported, and who is told."""

from __future__ import annotations

from typing import Any, Literal

from simpletuner.config.option import Section, option

SWANLAB = (
    "its library (0.10) needs protobuf below 7, and the program's pinned set holds 7; use a class of your own with "
    "custom-tracker"
)
QUIET_NAMES = ("", "none")
CUSTOM_TRACKER = "custom-tracker"


class ReportingSection(Section):
    report_to: str = option(
        "none",
        "Trackers, comma-separated: `wandb`, `tensorboard`, `comet_ml`, `custom-tracker`, `simpletuner` (files in the "
        "run folder for other programs); `all` takes those that are installed. `none` keeps the local journal and "
        "report only.",
        "追踪器，用逗号分隔：`wandb`、`tensorboard`、`comet_ml`、`custom-tracker`、`simpletuner`（输出文件夹中供其他程序读取的文件）；"
        "`all` 表示所有已安装的追踪器；`none` 只保留本地日志与报告。",
        guide=True,
        refused_values={"swanlab": SWANLAB},
    )
    tracker_project_name: str = option(
        "simpletuner",
        "Project the run belongs to at a tracker; also the repository's name on the Hub without `hub_model_id`.",
        "本次运行在追踪器中所属的项目；未设置 `hub_model_id` 时也用作 Hub 仓库名。",
        guide=True,
    )
    tracker_run_name: str = option(
        "ltxvideo",
        "Name of the run, shown in reports and trackers and in the adapter's metadata.",
        "本次运行的名称，显示在报告、追踪器与适配器元数据中。",
        guide=True,
    )
    tracker_image_layout: Literal["gallery", "table"] = option(
        "gallery",
        "How W&B shows validation videos: `gallery`, one panel per prompt, or `table`, one table per validation with a "
        "row per video.",
        "W&B 展示验证视频的方式：`gallery` 每个提示词一个面板；`table` 每次验证一个表格，每个视频一行。",
        level="expert",
    )
    custom_tracker: str | None = option(
        None,
        "For `report_to` custom-tracker: name of a file in `custom-trackers/`, or path of a Python file, with one "
        "subclass of Accelerate's `GeneralTracker`. Its code is run.",
        "用于 `report_to` 的 custom-tracker：`custom-trackers/` 中的文件名或 Python 文件路径，其中只有一个 "
        "`GeneralTracker` 子类。其代码会被执行。",
        level="expert",
    )
    logging_dir: str = option(
        "logs",
        "Folder of the trackers' own files (W&B, TensorBoard), relative to `output_dir`.",
        "追踪器自身文件（W&B、TensorBoard）的文件夹，相对于 `output_dir`。",
        level="expert",
        empty_fix="Name a folder, for example logs",
    )
    webhook_config: Any = option(
        None,
        "Webhooks that are told what happens, at Discord or at an address of one's own (`raw`): a JSON file, an object "
        "or a list of objects.",
        "接收事件的 webhook（Discord 或自有地址 `raw`）：JSON 文件、对象或对象列表。",
        guide=True,
        secret=True,
    )
    push_to_hub: bool = option(
        False,
        "Upload the trained adapter, a model card and the sample videos to the Hub when the run is finished. Needs "
        "a login (`hf auth login` or HF_TOKEN); an upload that fails never stops the run.",
        "训练结束后将适配器、模型卡与示例视频上传到 Hub。需要登录（`hf auth login` 或 HF_TOKEN）；"
        "上传失败不会中断训练。",
        guide=True,
    )
    push_checkpoints_to_hub: bool = option(
        False,
        "Upload each checkpoint to the Hub as a folder of its own; its adapter also becomes the repository's main one.",
        "将每个检查点作为独立文件夹上传到 Hub；其适配器同时成为仓库的主适配器。",
        guide=True,
    )
    push_to_hub_background: bool = option(
        False,
        "Upload in the background.",
        "在后台上传。",
        level="advanced",
        accepted_note="uploads always run in the background; a finished run waits for them",
    )
    hub_model_id: str | None = option(
        None,
        "Repository on the Hub: `name`, `owner/name` or its address. Without it the project's name is taken.",
        "Hub 上的仓库：`名称`、`所有者/名称` 或其网址。未设置时使用项目名。",
        guide=True,
    )
    model_card_private: bool = option(
        True,
        "Make a new repository private; one that exists stays as it is.",
        "将新建的仓库设为私有；已有仓库保持不变。",
        level="advanced",
    )
    model_card_safe_for_work: bool = option(
        False,
        "Say on the model card that the model is safe for work; otherwise it says `not-for-all-audiences`.",
        "在模型卡上声明内容安全；否则标注 `not-for-all-audiences`。",
        level="expert",
    )
    model_card_note: str | None = option(
        None, "Note of your own on the model card (Markdown).", "模型卡上的自定义备注（Markdown）。", level="expert"
    )
    modelspec_comment: Any = option(
        None,
        "Comment in the adapter's metadata (`modelspec.comment`): a text, or a list of lines. `{current_step}`, "
        "`{current_epoch}`, `{timestamp}` and `{env:NAME}` are filled in when the finished adapter is written.",
        "适配器元数据中的注释（`modelspec.comment`）：文本或行的列表。保存时填入 `{current_step}`、`{current_epoch}`、"
        "`{timestamp}` 与 `{env:NAME}`。",
        level="expert",
    )
    publishing_config: Any = option(
        None,
        "Buckets of S3-compatible stores that checkpoints and results are uploaded to: a JSON file, an object or a "
        "list of objects with `provider`, `bucket` and the like.",
        "上传检查点与结果的 S3 兼容存储桶：JSON 文件、对象或对象列表，含 `provider`、`bucket` 等键。",
        level="expert",
        secret=True,
    )
    post_upload_script: str | None = option(
        None,
        "Command to run after each confirmed upload: a program and its arguments, without a shell. "
        "`{huggingface_path}`, `{remote_checkpoint_path}`, `{local_checkpoint_path}`, `{global_step}` and others are "
        "filled in.",
        "每次确认上传后运行的命令：程序及其参数，不经过 shell。会填入 `{huggingface_path}`、"
        "`{remote_checkpoint_path}`、`{local_checkpoint_path}`、`{global_step}` 等。",
        level="expert",
    )


def tracker_names(report_to: str) -> tuple[str, ...]:
    """The words of `report_to` in lower case, without those that ask for nothing beyond the run folder."""
    words = (word.strip().lower() for word in report_to.split(","))
    return tuple(word for word in words if word not in QUIET_NAMES)
