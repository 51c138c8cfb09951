"""The optimizer and the gradients it sees."""

from __future__ import annotations

from typing import Literal

from simpletuner.config.option import Section, option

PLANNED = (
    "adamw_schedulefree", "adamw_schedulefree+aggressive", "adamw_schedulefree+no_kahan", "soap", "muon", "prodigy",
    *(f"ao-{name}" for name in ("adamw8bit", "adamw4bit", "adamfp8", "adamwfp8")),
    *(f"bnb-{name}{kind}" for name in ("adagrad", "ademamix") for kind in ("", "8bit", "-paged", "8bit-paged")),
    *(f"sdnq-{name}" for name in ("adamw", "adafactor", "came", "lion", "muon")),
)  # fmt: skip


class OptimizerSection(Section):
    optimizer: str = option(
        "adamw_bf16",
        "Optimizer: `adamw_bf16` keeps bf16 weights with stochastic rounding, `torch-…` are PyTorch's own, `optimi-…` "
        "keep bf16 weights by Kahan summation, `bnb-…8bit` keep 8-bit moments.",
        "优化器：`adamw_bf16` 以随机舍入保持 bf16 权重，`torch-…` 为 PyTorch 自带，"
        "`optimi-…` 以 Kahan 求和保持 bf16 权重，`bnb-…8bit` 使用 8 位动量。",
        guide=True,
        catalog="simpletuner.config.catalogs.optimizers:OPTIMIZERS",
        planned_values={name: f"the optimizer '{name}'" for name in PLANNED},
        refused_values={"torch-sparseadam": "no layer of LTX-Video has the sparse gradients it needs"},
    )
    optimizer_beta1: float | None = option(
        None, "First moment's memory.", "一阶动量的记忆系数。", ge=0, lt=1, level="advanced", aliases=("adam_beta1",)
    )
    optimizer_beta2: float | None = option(
        None, "Second moment's memory.", "二阶动量的记忆系数。", ge=0, lt=1, level="advanced", aliases=("adam_beta2",)
    )
    adam_weight_decay: float | None = option(
        None, "Weight decay; absent takes the optimizer's own (0.01 for AdamW).",
        "权重衰减；未给出时取优化器自身的值（AdamW 为 0.01）。", ge=0,
    )  # fmt: skip
    adam_epsilon: float | None = option(
        None, "Term that keeps the division finite; absent takes the optimizer's own (1e-6 for AdamW).",
        "防止除零的小量；未给出时取优化器自身的值（AdamW 为 1e-6）。", gt=0, level="advanced",
    )  # fmt: skip
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
        None,
        "Settings of the optimizer: `key=value,key=value`; its page in the documents lists the keys.",
        "优化器的设置：`key=value,key=value`。",
        level="expert",
    )
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
