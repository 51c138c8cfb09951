"""Running averages of the trained weights (EMA)."""

from __future__ import annotations

from typing import Literal

from simpletuner.config.option import Section, option


class AverageSection(Section):
    use_ema: bool = option(
        False,
        "Keep a running average of the trained weights, and export it beside them.",
        "保留训练权重的滑动平均（EMA），并与其一同导出。",
        guide=True,
    )
    ema_decay: float = option(
        0.995,
        "Memory of the average; it looks back over ema_update_interval / (1 - ema_decay) steps.",
        "滑动平均的衰减系数；回看 ema_update_interval / (1 - ema_decay) 步。",
        ge=0,
        lt=1,
    )
    ema_update_interval: int = option(
        1, "Steps between updates of the average.", "两次更新滑动平均之间的步数。", ge=1, unit="steps", guide=True
    )
    ema_warmup_steps: int = option(
        0, "Steps during which weights are copied as they are; 0 lets the memory rise by itself.",
        "直接复制权重的步数；0 表示记忆自行增长。", ge=0, unit="steps", level="advanced",
    )  # fmt: skip
    ema_device: Literal["cpu", "accelerator"] = option(
        "cpu",
        "Where the average is kept: `cpu` copies the weights beside training, `accelerator` costs 4 bytes per trained "
        "parameter there.",
        "滑动平均存放的设备：`cpu` 在训练的同时复制权重，`accelerator` 每个训练参数占 4 字节显存。",
        level="advanced",
    )
    ema_cpu_only: bool = option(
        False, "Never move the average for an update.", "更新时也不移动滑动平均。", level="expert",
        accepted_note="with ema_device cpu the average is never moved; with accelerator it always stays there",
    )  # fmt: skip
    ema_foreach_disable: bool = option(
        False, "Update one weight at a time.", "逐个权重更新。", level="expert",
        accepted_note="the average is updated weight by weight anyway",
    )  # fmt: skip
    ema_validation: Literal["none", "ema_only", "comparison"] = option(
        "comparison",
        "Which weights validation shows while `use_ema` is on: the trained ones, the average, or both.",
        "启用 `use_ema` 时验证使用的权重：训练权重、滑动平均或两者。",
        guide=True,
    )
