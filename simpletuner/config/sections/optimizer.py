"""The optimizer and the gradients it sees."""

from __future__ import annotations

from typing import Literal

from simpletuner.config.option import Section, option

TORCH = ("adam", "sgd", "radam", "nadam", "rmsprop", "adagrad", "adadelta", "adafactor", "adamax", "asgd", "sparseadam")
BITSANDBYTES = ("adagrad", "adam", "adamw", "lion", "ademamix")
PLANNED = (
    "adamw_schedulefree", "adamw_schedulefree+aggressive", "adamw_schedulefree+no_kahan", "soap", "muon", "prodigy",
    *(f"torch-{name}" for name in TORCH),
    *(f"ao-{name}" for name in ("adamw8bit", "adamw4bit", "adamfp8", "adamwfp8")),
    *(f"optimi-{name}" for name in ("lion", "stableadamw", "adamw", "radam", "ranger", "adan", "adam", "sgd")),
    *(f"bnb-{name}{kind}" for name in BITSANDBYTES for kind in ("", "8bit", "-paged", "8bit-paged")),
    *(f"sdnq-{name}" for name in ("adamw", "adafactor", "came", "lion", "muon")),
)  # fmt: skip


class OptimizerSection(Section):
    optimizer: str = option(
        "adamw_bf16",
        "Optimizer: `adamw_bf16` keeps bf16 weights with stochastic rounding, `torch-adamw` is PyTorch's own.",
        "优化器：`adamw_bf16` 以随机舍入保持 bf16 权重，`torch-adamw` 为 PyTorch 自带。",
        guide=True,
        catalog="simpletuner.config.catalogs.optimizers:OPTIMIZERS",
        planned_values={name: f"the optimizer '{name}'" for name in PLANNED},
    )
    optimizer_beta1: float | None = option(
        None, "First moment's memory.", "一阶动量的记忆系数。", ge=0, lt=1, level="advanced", aliases=("adam_beta1",)
    )
    optimizer_beta2: float | None = option(
        None, "Second moment's memory.", "二阶动量的记忆系数。", ge=0, lt=1, level="advanced", aliases=("adam_beta2",)
    )
    adam_weight_decay: float = option(0.01, "Decoupled weight decay.", "解耦的权重衰减。", ge=0)
    adam_epsilon: float = option(
        1e-6, "Term that keeps the division finite.", "防止除零的小量。", gt=0, level="advanced"
    )
    max_grad_norm: float = option(
        2.0, "Clipping threshold; 0 switches clipping off.", "裁剪阈值；0 表示关闭裁剪。", ge=0, guide=True
    )
    grad_clip_method: Literal["value", "norm"] = option(
        "value",
        "Clip each gradient element (`value`) or the global norm (`norm`).",
        "裁剪每个梯度元素（`value`）或全局范数（`norm`）。",
        guide=True,
    )
    optimizer_config: str | None = option(
        None, "Further settings of the optimizer: `key=value,key=value`.", "优化器的其他设置：`key=value,key=value`。",
        level="expert", planned="free-form optimizer settings",
    )  # fmt: skip
    optimizer_cpu_offload_method: Literal["none"] = option(
        "none", "Keep optimizer state in RAM.", "将优化器状态放在内存中。", level="expert"
    )
    optimizer_offload_gradients: bool = option(
        False, "Move gradients to RAM.", "将梯度移到内存。", level="expert", planned="offload of gradients"
    )
    fuse_optimizer: bool = option(
        False, "Use the fused kernel of the optimizer.", "使用优化器的融合内核。", level="expert",
        planned="fused optimizer kernels",
    )  # fmt: skip
    optimizer_release_gradients: bool = option(
        False, "Step each weight as soon as its gradient is there.", "梯度一到即更新对应权重。", level="expert",
        planned="releasing gradients in the backward pass",
    )  # fmt: skip
    prodigy_steps: int | None = option(
        None, "Steps during which Prodigy adapts.", "Prodigy 自适应的步数。", ge=0, unit="steps", level="expert",
        planned="the optimizer 'prodigy'",
    )  # fmt: skip
