"""Running averages of the trained weights (EMA)."""

from __future__ import annotations

from typing import Literal

from simpletuner.config.option import Section, option

EMA = "exponential moving average of the weights"


class AverageSection(Section):
    use_ema: bool = option(
        False,
        "Keep a running average of the trained weights.",
        "保留训练权重的滑动平均（EMA）。",
        guide=True,
        planned=EMA,
    )
    ema_decay: float = option(0.995, "Memory of the average.", "滑动平均的衰减系数。", ge=0, lt=1, planned=EMA)
    ema_update_interval: int = option(
        1,
        "Steps between updates of the average.",
        "两次更新滑动平均之间的步数。",
        ge=1,
        unit="steps",
        guide=True,
        planned=EMA,
    )
    ema_warmup_steps: int = option(
        0, "Steps during which weights are copied as they are.", "直接复制权重的步数。", ge=0, unit="steps",
        level="advanced", planned=EMA,
    )  # fmt: skip
    ema_device: Literal["cpu", "accelerator"] = option(
        "cpu", "Where the average is kept.", "滑动平均存放的设备。", level="advanced", planned=EMA
    )
    ema_cpu_only: bool = option(
        False, "Never move the average for an update.", "更新时也不移动滑动平均。", level="expert", planned=EMA
    )
    ema_foreach_disable: bool = option(
        False, "Update one weight at a time.", "逐个权重更新。", level="expert", planned=EMA
    )
    ema_validation: Literal["none", "ema_only", "comparison"] = option(
        "comparison",
        "Which weights validation shows.",
        "验证时使用哪些权重。",
        guide=True,
        planned=EMA,
        neutral=("none",),
    )
