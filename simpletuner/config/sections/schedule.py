"""How long, how much at once, and at which learning rate."""

from __future__ import annotations

from typing import Literal

from simpletuner.config.option import Section, option

TEXT_FROZEN = "LTX-Video's text encoder stays frozen"


class ScheduleSection(Section):
    seed: int = option(42, "Seed of every random draw of the run.", "本次运行所有随机数的种子。", ge=0, guide=True)
    max_train_steps: int = option(
        0,
        "Optimizer steps to train; 0 means that epochs decide.",
        "训练的优化器步数；0 表示由轮数决定。",
        ge=0,
        unit="steps",
        guide=True,
    )
    num_train_epochs: int = option(
        0,
        "Epochs to train; 0 means that steps decide.",
        "训练轮数；0 表示由步数决定。",
        ge=0,
        unit="epochs",
        guide=True,
    )
    ignore_final_epochs: bool = option(
        False,
        "With both limits given, let `max_train_steps` decide and go on past `num_train_epochs`.",
        "两个限制都给出时由 `max_train_steps` 决定，超过 `num_train_epochs` 也继续。",
        guide=True,
        level="advanced",
    )
    strict_epoch_limit: bool = option(
        False, "With both limits given, stop at whichever comes first.",
        "两个限制都给出时，先到者结束运行。", level="advanced",
        excludes=("ignore_final_epochs",),
    )  # fmt: skip
    train_batch_size: int = option(1, "Clips in one forward pass.", "一次前向的视频数。", ge=1, guide=True)
    max_tokens_per_batch: int | None = option(
        None,
        "Fill each batch up to this many latent cells instead of counting clips: small sizes get more clips per "
        "batch, and one clip is always taken. A train_batch_size above 1 is then the most clips of a batch.",
        "按潜空间单元数而不是按视频数填充批次：小尺寸的批次含更多视频，至少一个。"
        "此时大于 1 的 train_batch_size 为每批视频数上限。",
        ge=1,
        unit="tokens",
        level="advanced",
    )
    gradient_accumulation_steps: int = option(
        1, "Forward passes per optimizer step.", "每个优化器步的前向次数。", ge=1, guide=True
    )
    learning_rate: float = option(1e-4, "Learning rate of the plateau.", "平台期的学习率。", gt=0, le=10, guide=True)
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "sine"
    ] = option(
        "constant_with_warmup",
        "Course of the learning rate.",
        "学习率曲线。",
        guide=True,
        value_aliases={"cosine_with_warmup": "cosine"},
    )
    lr_warmup_steps: int = option(
        0, "Steps from zero to the full learning rate.", "学习率从零升到最大值的步数。", ge=0, unit="steps", guide=True
    )
    lr_end: float = option(
        4e-7,
        "Learning rate at the end of a decaying schedule.",
        "衰减曲线结束时的学习率。",
        ge=0,
    )
    lr_power: float = option(0.8, "Exponent of the polynomial schedule.", "多项式曲线的指数。", gt=0, level="advanced")
    lr_num_cycles: int = option(
        1, "Cycles of `cosine_with_restarts`.", "`cosine_with_restarts` 的周期数。", ge=1, level="expert"
    )
    lr_scale: bool = option(
        False,
        "Multiply the learning rate by the effective batch size (clips per optimizer step).",
        "学习率乘以有效批大小（每个优化器步的视频数）。",
        level="advanced",
    )
    lr_scale_sqrt: bool = option(
        False,
        "Multiply by the square root of the effective batch size instead.",
        "改为乘以有效批大小的平方根。",
        level="expert",
        excludes=("lr_scale",),
    )
    seed_for_each_device: bool = option(
        True, "Give each process its own seed.", "每个进程使用各自的种子。", level="expert",
        accepted_note="random draws are keyed by the running number of the sample, whatever process makes them",
    )  # fmt: skip
    train_text_encoder: bool = option(
        False, "Train the text encoder too.", "同时训练文本编码器。", level="expert", refused=TEXT_FROZEN
    )
    text_encoder_lr: float | None = option(
        None, "Learning rate of the text encoder.", "文本编码器的学习率。", ge=0, level="expert", refused=TEXT_FROZEN
    )
    text_encoder_limit: int | None = option(
        None, "Steps for which the text encoder trains.", "文本编码器训练的步数。", ge=0, level="expert",
        refused=TEXT_FROZEN,
    )  # fmt: skip
    freeze_encoder_strategy: str | None = option(
        None,
        "Which text encoder layers stay frozen.",
        "文本编码器中保持冻结的层。",
        level="expert",
        refused=TEXT_FROZEN,
    )
    layer_freeze_strategy: str | None = option(
        None, "Which layers stay frozen.", "保持冻结的层。", level="expert",
        refused="it belongs to another model family; use peft_lora_target_modules to choose layers",
    )  # fmt: skip
