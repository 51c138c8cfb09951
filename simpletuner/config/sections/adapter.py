"""The shape of the adapter."""

from __future__ import annotations

from typing import Any, Literal

from simpletuner.config.option import Section, option

LYCORIS = "LyCORIS adapters"


class AdapterSection(Section):
    lora_type: Literal["standard"] = option(
        "standard",
        "Adapter library: PEFT LoRA (`standard`) or LyCORIS.",
        "适配器库：PEFT LoRA（`standard`）或 LyCORIS。",
        guide=True,
        planned_values={"lycoris": LYCORIS},
    )
    lora_rank: int = option(
        16,
        "Rank of the LoRA matrices; 4 makes small files.",
        "LoRA 矩阵的秩；4 可得到很小的文件。",
        ge=1,
        le=1024,
        guide=True,
    )
    lora_alpha: float | None = option(
        None,
        "Scale numerator of the LoRA; absent means equal to the rank.",
        "LoRA 的缩放分子；未给出时等于秩。",
        gt=0,
    )
    lora_dropout: float = option(
        0.0, "Share of adapter inputs dropped while training.", "训练时丢弃的适配器输入比例。", ge=0, lt=1
    )
    lora_init_type: Literal["default", "gaussian"] = option(
        "default",
        "How the LoRA matrices start.",
        "LoRA 矩阵的初始化方式。",
        level="advanced",
        planned_values={value: f"LoRA initialisation '{value}'" for value in ("pissa", "olora", "loftq")},
    )
    lora_targets: Literal["attention", "all"] = option(
        "attention",
        "Layers that get an adapter: `attention`, or `all` linear layers of the transformer.",
        "加适配器的层：`attention`（注意力层），或 `all`（transformer 的全部线性层）。",
    )
    peft_lora_target_modules: list[str] | None = option(
        None,
        "Names of the layers that get an adapter; replaces `lora_targets`.",
        "加适配器的层名；取代 `lora_targets`。",
        level="advanced",
    )
    peft_lora_mode: Literal["standard"] = option(
        "standard", "Kind of PEFT LoRA.", "PEFT LoRA 的种类。", level="expert",
        planned_values={"singlora": "SingLoRA"},
    )  # fmt: skip
    singlora_ramp_up_steps: int = option(
        0, "Steps over which SingLoRA is ramped up.", "SingLoRA 逐步加强的步数。", ge=0, unit="steps", level="expert",
        planned="SingLoRA",
    )  # fmt: skip
    slider_lora_target: bool = option(
        False, "Use the layer choice of slider adapters.", "使用滑块（slider）适配器的层选择。", level="expert",
        planned="slider adapters",
    )  # fmt: skip
    use_dora: bool = option(
        False, "Weight-decomposed LoRA.", "权重分解 LoRA（DoRA）。", level="advanced", planned="DoRA"
    )
    lora_format: Literal["diffusers"] = option(
        "diffusers", "Names of the tensors in the saved adapter.", "保存的适配器中张量的命名方式。", level="advanced",
        planned_values={"comfyui": "adapter files in ComfyUI's naming"},
    )  # fmt: skip
    init_lora: str | None = option(
        None, "Adapter file to start from.", "作为起点的适配器文件。", level="advanced",
        planned="starting from an existing adapter file",
    )  # fmt: skip
    init_lora_step: int | None = option(
        None, "Step number at which a run from `init_lora` starts.", "从 `init_lora` 开始时的步数编号。", ge=0,
        level="expert", planned="starting from an existing adapter file",
    )  # fmt: skip
    init_lora_ema: str | None = option(
        None, "Averaged weights which belong to `init_lora`.", "与 `init_lora` 配套的平均权重。", level="expert",
        planned="starting from an existing adapter file",
    )  # fmt: skip
    lycoris_config: str | None = option(
        None, "JSON file of the LyCORIS settings.", "LyCORIS 设置的 JSON 文件。", guide=True, planned=LYCORIS
    )
    init_lokr_norm: float | None = option(
        None, "Norm of the random start of LoKr.", "LoKr 随机初始化的范数。", ge=0, level="expert", planned=LYCORIS
    )
    validation_lycoris_strength: float = option(
        1.0, "Strength of a LyCORIS adapter while validating.", "验证时 LyCORIS 适配器的强度。", ge=0, level="expert",
        planned=LYCORIS,
    )  # fmt: skip
    tread_config: Any = option(
        None, "Token routing of TREAD.", "TREAD 的 token 路由设置。", level="expert", planned="token routing (TREAD)"
    )
