"""Where the run lives, what it saves, how it resumes."""

from __future__ import annotations

from typing import Literal

from simpletuner.config.option import Section, option

ROLLING = "rolling safety checkpoints"
DISK = "watching the free space of the disk"


class CheckpointSection(Section):
    output_dir: str = option(
        "output/ltxvideo",
        "Folder of the run; a full path is best.",
        "本次运行的文件夹；最好使用完整路径。",
        guide=True,
        empty_fix="Name the folder of the run, or remove the option to use output/ltxvideo",
    )
    checkpoint_step_interval: int = option(
        500,
        "Steps between checkpoints; 0 saves only at the end.",
        "两个检查点之间的步数；0 表示只在结束时保存。",
        ge=0,
        unit="steps",
        aliases=("checkpointing_steps",),
        guide=True,
    )
    checkpoints_total_limit: int = option(
        5,
        "Checkpoints kept; the oldest go first; 0 keeps all.",
        "保留的检查点数；最旧的先删除；0 表示全部保留。",
        ge=0,
        aliases=("save_total_limit",),
        guide=True,
    )
    resume_from_checkpoint: str | None = option(
        "latest",
        "`latest`, the path of a checkpoint to continue from, or `none` for a fresh start.",
        "`latest`、要继续的检查点路径，或 `none`（重新开始）。",
        guide=True,
    )
    checkpoint_epoch_interval: int | None = option(
        None, "Epochs between checkpoints.",
        "两个检查点之间的轮数。", ge=0, unit="epochs", level="advanced", neutral=(0,),
        planned="checkpoints by epochs",
    )  # fmt: skip
    checkpointing_rolling_steps: int = option(
        0, "Steps between safety checkpoints.", "安全检查点之间的步数。", ge=0, unit="steps", level="expert",
        planned=ROLLING,
    )  # fmt: skip
    checkpoints_rolling_total_limit: int = option(
        1, "Safety checkpoints kept.", "保留的安全检查点数。", ge=0, level="expert", planned=ROLLING
    )
    checkpointing_use_tempdir: bool = option(
        False, "Write elsewhere, then rename.", "先写到别处再重命名。", level="expert",
        accepted_note="checkpoints are always written under a staging name and renamed when complete",
    )  # fmt: skip
    delete_invalid_checkpoints: bool = option(
        False, "Delete checkpoints that cannot be read.", "删除无法读取的检查点。", level="expert",
        planned="deleting damaged checkpoints",
    )  # fmt: skip
    disk_low_threshold: str | None = option(
        None, "Free space below which to act.", "触发处理的剩余空间。", level="expert", planned=DISK
    )
    disk_low_action: Literal["stop", "wait", "script"] = option(
        "stop", "What to do then.", "空间不足时的处理。", level="expert", planned=DISK
    )
    disk_low_script: str | None = option(
        None, "Command to run then.", "空间不足时运行的命令。", level="expert", planned=DISK
    )
    post_checkpoint_script: str | None = option(
        None, "Command to run after each checkpoint.", "每个检查点之后运行的命令。", level="expert",
        planned="commands after a checkpoint",
    )  # fmt: skip
    save_text_encoder: bool = option(
        False, "Save the text encoder too.", "同时保存文本编码器。", level="expert",
        accepted_note="the text encoder is not trained, so that there is nothing to save",
    )  # fmt: skip
