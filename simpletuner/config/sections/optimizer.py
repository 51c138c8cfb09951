"""The optimizer and the gradients it sees."""

from __future__ import annotations

from typing import Literal

from simpletuner.config.catalogs.optimizers import OPTIMIZERS
from simpletuner.config.option import Section, option

SDNQ = tuple(
    f"sdnq-{name}{kind}"
    for name in ("adamw", "adafactor", "came", "lion", "muon")
    for kind in ("", "+no_quant", "+quantized_matmul")
)
_REFUSED = {
    "torch-sparseadam": "no layer of LTX-Video has the sparse gradients it needs; use torch-adam",
    "bnb-adagrad-paged": "bitsandbytes has no paged Adagrad; use bnb-adagrad8bit or bnb-adamw8bit-paged",
    "bnb-adagrad8bit-paged": "bitsandbytes has no paged Adagrad; use bnb-adagrad8bit or bnb-adamw8bit-paged",
    **dict.fromkeys(
        SDNQ,
        "SDNQ quantizes with a format of its own, which nothing else here reads; "
        "use ao-adamw8bit, torch-adafactor, optimi-lion or muon",
    ),
}


class OptimizerSection(Section):
    optimizer: str = option(
        "adamw_bf16",
        "Optimizer: `adamw_bf16` keeps bf16 weights with stochastic rounding, `torch-…` are PyTorch's own, `optimi-…` "
        "keep bf16 weights by Kahan summation, `bnb-…8bit` and `ao-…` keep moments in few bits, `prodigy` finds its "
        "learning rate, `adamw_schedulefree` needs no decaying one.",
        "优化器：`adamw_bf16` 以随机舍入保持 bf16 权重，`torch-…` 为 PyTorch 自带，"
        "`optimi-…` 以 Kahan 求和保持 bf16 权重，`bnb-…8bit` 与 `ao-…` 以低位数保存动量，"
        "`prodigy` 自行求得学习率，`adamw_schedulefree` 无需学习率衰减。",
        guide=True,
        catalog="simpletuner.config.catalogs.optimizers:OPTIMIZERS",
        refused_values=_REFUSED,
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
        "Settings of the optimizer: `key=value,key=value`; docs/optimizers.md lists the keys of each.",
        "优化器的设置：`key=value,key=value`；docs/optimizers.md 列出各自的键。",
        level="expert",
    )
    optimizer_cpu_offload_method: Literal["none", "cpu"] = option(
        "none",
        "`cpu` keeps the optimizer's state in RAM and computes the update there; slower, for cards with little memory.",
        "`cpu` 将优化器状态放在内存中并在 CPU 上计算更新；较慢，适合显存不足时。",
        level="expert",
    )
    optimizer_offload_gradients: bool = option(
        False, "Move gradients to RAM.", "将梯度移到内存。", level="expert", planned="offload of gradients"
    )
    fuse_optimizer: bool = option(
        False,
        "Use the optimizer's fused kernel, where PyTorch has one.",
        "使用 PyTorch 提供的融合内核（若有）。",
        level="expert",
    )
    optimizer_release_gradients: bool = option(
        False,
        "Update each weight as soon as the backward pass has its gradient, and drop the gradient: saves the memory of "
        "all gradients. Not with accumulation, not with clipping by the norm.",
        "反向传播得到某权重的梯度后立即更新并丢弃该梯度，节省全部梯度的显存。不能与梯度累积或按范数裁剪同用。",
        level="expert",
    )
    prodigy_steps: int | None = option(
        None, "Steps during which Prodigy adapts its step size; absent or 0 adapts to the end.",
        "Prodigy 调整步长的步数；未给出或 0 表示始终调整。", ge=0, unit="steps", level="expert",
    )  # fmt: skip

    @property
    def clip_limit(self) -> float:
        """`max_grad_norm`, or 0 (off) for optimizers that limit their own updates."""
        return self.max_grad_norm if OPTIMIZERS[self.optimizer].clips else 0.0
