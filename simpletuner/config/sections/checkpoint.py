"""Where the run lives, what it saves, how it resumes."""

from __future__ import annotations

from typing import Literal

from simpletuner.config.option import Section, option


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
        None, "Epochs between checkpoints, beside those by steps.",
        "两个检查点之间的轮数（与按步数的检查点并存）。", ge=0, unit="epochs", level="advanced", neutral=(0,),
    )  # fmt: skip
    checkpointing_rolling_steps: int = option(
        0, "Steps between safety checkpoints, which have a limit of their own; 0 makes none.",
        "安全检查点之间的步数，其保留数单独限制；0 表示不保存。", ge=0, unit="steps", level="advanced",
    )  # fmt: skip
    checkpoints_rolling_total_limit: int = option(
        1, "Safety checkpoints kept; 0 keeps all.", "保留的安全检查点数；0 表示全部保留。", ge=0, level="advanced"
    )
    checkpoint_in_background: bool = option(
        True,
        "Write checkpoints while training goes on; costs RAM for one copy of weights and optimizer states.",
        "在训练继续的同时写入检查点；需要额外内存存放一份权重和优化器状态。",
        level="advanced",
    )
    broken_steps_limit: int = option(
        5,
        "Steps within 100 whose loss or gradients are no finite numbers that are passed over; with more the run goes "
        "back to its last checkpoint and on with other clips.",
        "每 100 步内允许跳过的损失或梯度非有限值的步数；超过时回到最近的检查点，并用后续样本继续。",
        ge=0,
        unit="steps",
        level="advanced",
    )
    rollback_limit: int = option(
        2,
        "How often a run goes back to a checkpoint by itself before it ends with exit code 5.",
        "运行自动回到检查点的最多次数，超过后以退出码 5 结束。",
        ge=0,
        level="advanced",
    )
    checkpointing_use_tempdir: bool = option(
        False, "Write elsewhere, then rename.", "先写到别处再重命名。", level="expert",
        accepted_note="checkpoints are always written under a staging name and renamed when complete",
    )  # fmt: skip
    delete_invalid_checkpoints: bool = option(
        False, "Delete damaged checkpoints that are newer than the one a run goes on from.",
        "删除比继续所用检查点更新的损坏检查点。", level="expert",
    )  # fmt: skip
    disk_low_threshold: str | None = option(
        None,
        "Free space below which to act before a checkpoint is written, such as 20G (powers of 1000) or 18GiB.",
        "写入检查点之前触发处理的剩余空间，例如 20G（1000 的幂）或 18GiB。",
        level="advanced",
    )
    disk_low_action: Literal["stop", "wait", "script"] = option(
        "stop",
        "What to do then: `stop` saves once more and ends the run, `wait` until there is room, run a `script`.",
        "空间不足时的处理：`stop` 再保存一次后结束运行，`wait` 等待空间，`script` 运行命令。",
        level="advanced",
    )
    disk_low_script: str | None = option(
        None,
        "Command that makes room, with the placeholders of post_checkpoint_script; no shell reads it.",
        "用于腾出空间的命令，占位符与 post_checkpoint_script 相同；不经过 shell。",
        level="expert",
    )
    post_checkpoint_script: str | None = option(
        None,
        "Command to run after each checkpoint; it may hold {local_checkpoint_path}, {global_step}, "
        "{tracker_run_name}, {tracker_project_name}, {model_family}, {model_type}, {lora_type}, {huggingface_path} "
        "and every {validation_…} option. No shell reads it.",
        "每个检查点之后运行的命令；可包含 {local_checkpoint_path}、{global_step}、{tracker_run_name}、"
        "{tracker_project_name}、{model_family}、{model_type}、{lora_type}、{huggingface_path} 以及所有 "
        "{validation_…} 选项。不经过 shell。",
        level="advanced",
    )
    save_text_encoder: bool = option(
        False, "Save the text encoder too.", "同时保存文本编码器。", level="expert",
        accepted_note="the text encoder is not trained, so that there is nothing to save",
    )  # fmt: skip
