"""Names under which the run is reported, and who is told."""

from __future__ import annotations

from typing import Any

from simpletuner.config.option import Section, option

TRACKERS = ("wandb", "tensorboard", "comet_ml", "swanlab", "custom-tracker", "all")
HUB = "uploading to the Hub"


class ReportingSection(Section):
    report_to: str = option(
        "none",
        "Trackers, comma-separated; `none` keeps the local files and the report only.",
        "追踪器，用逗号分隔；`none` 只保留本地文件与报告。",
        guide=True,
        planned_values={name: f"the tracker '{name}'" for name in TRACKERS},
    )
    tracker_project_name: str = option(
        "simpletuner",
        "Project the run belongs to.",
        "本次运行所属的项目。",
        guide=True,
        accepted_note="it names a project of a tracker, and no tracker is built yet",
    )
    tracker_run_name: str = option(
        "ltxvideo",
        "Name of the run, shown in reports and in the adapter's metadata.",
        "本次运行的名称，显示在报告与适配器元数据中。",
        guide=True,
    )
    tracker_image_layout: str = option(
        "gallery", "How a tracker shows pictures.", "追踪器展示图像的方式。", level="expert", planned="trackers"
    )
    custom_tracker: str | None = option(
        None, "Own tracker class.", "自定义追踪器。", level="expert", planned="the tracker 'custom-tracker'"
    )
    logging_dir: str = option(
        "logs", "Folder of tracker files.", "追踪器文件夹。", level="expert", planned="trackers with own files"
    )
    webhook_config: Any = option(
        None, "Webhooks that are told what happens: a JSON file, an object or a list.",
        "接收事件的 webhook：JSON 文件、对象或列表。", guide=True, planned="webhooks", secret=True,
    )  # fmt: skip
    push_to_hub: bool = option(False, "Upload the result to the Hub.", "将结果上传到 Hub。", guide=True, planned=HUB)
    push_checkpoints_to_hub: bool = option(
        False, "Upload each checkpoint to the Hub.", "将每个检查点上传到 Hub。", guide=True, planned=HUB
    )
    push_to_hub_background: bool = option(
        False, "Upload in the background.", "在后台上传。", level="advanced", planned=HUB
    )
    hub_model_id: str | None = option(
        None, "Name of the repository on the Hub.", "Hub 上的仓库名。", guide=True, planned=HUB
    )
    model_card_private: bool = option(
        True, "Make the repository private.", "将仓库设为私有。", level="advanced", planned=HUB
    )
    model_card_safe_for_work: bool = option(
        False, "Say that the model is safe for work.", "声明模型内容安全。", level="expert", planned=HUB
    )
    model_card_note: str | None = option(
        None, "Note on the model card.", "模型卡上的备注。", level="expert", planned=HUB
    )
    modelspec_comment: Any = option(
        None, "Comment in the adapter's metadata.", "适配器元数据中的注释。", level="expert",
        planned="comments in the adapter's metadata",
    )  # fmt: skip
    publishing_config: Any = option(
        None, "Other places to upload to.", "其他上传目标。", level="expert", planned="uploading elsewhere", secret=True
    )
    post_upload_script: str | None = option(
        None,
        "Command to run after each upload.",
        "每次上传后运行的命令。",
        level="expert",
        planned="commands after an upload",
    )
