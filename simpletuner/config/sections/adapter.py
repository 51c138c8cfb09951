"""The shape of the adapter."""

from __future__ import annotations

from typing import Any, Literal

from simpletuner.config.option import Section, option


class AdapterSection(Section):
    lora_type: Literal["standard", "lycoris"] = option(
        "standard",
        "Adapter library: PEFT LoRA (`standard`) or LyCORIS.",
        "适配器库：PEFT LoRA（`standard`）或 LyCORIS。",
        guide=True,
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
    lora_init_type: Literal["default", "gaussian", "pissa", "olora"] = option(
        "default",
        "How the LoRA matrices start; `pissa` and `olora` start at the main part of the weights, and their files "
        "have twice the rank.",
        "LoRA 矩阵的初始化方式；`pissa` 与 `olora` 从权重的主要成分开始，其文件的秩为两倍。",
        level="advanced",
        refused_values={"loftq": "it starts from the rounding errors of a quantized base, which the files cannot keep"},
    )
    lora_targets: Literal["attention", "all"] = option(
        "attention",
        "Layers that get an adapter: `attention`, or `all` linear layers of the transformer.",
        "加适配器的层：`attention`（注意力层），或 `all`（transformer 的全部线性层）。",
    )
    peft_lora_target_modules: list[str] | None = option(
        None,
        "Names of the layers that get an adapter, or a JSON file with a list of them; replaces `lora_targets`.",
        "加适配器的层名，或包含层名列表的 JSON 文件；取代 `lora_targets`。",
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
        False, "Weight-decomposed LoRA: trains the length of each weight row apart from its direction.",
        "权重分解 LoRA（DoRA）：分别训练每行权重的长度与方向。", level="advanced",
    )  # fmt: skip
    lora_format: Literal["diffusers", "comfyui"] = option(
        "diffusers",
        "Names of the tensors in the saved LoRA: for Diffusers, or for ComfyUI (the strength is then part of the "
        "tensors). `simpletuner export` converts later.",
        "保存的 LoRA 中张量的命名方式：用于 Diffusers，或用于 ComfyUI（此时强度已乘入张量）。"
        "之后可用 `simpletuner export` 转换。",
        level="advanced",
    )
    init_lora: str | None = option(
        None,
        "Adapter file to start from, in any layout; the step count starts at 0.",
        "作为起点的适配器文件，任何命名方式均可；步数从 0 开始。",
        level="advanced",
    )
    init_lora_step: int | None = option(
        None, "Step number at which a run from `init_lora` starts.", "从 `init_lora` 开始时的步数编号。", ge=0,
        level="expert", planned="continuing the step count of an adapter file",
    )  # fmt: skip
    init_lora_ema: str | None = option(
        None, "Averaged weights which belong to `init_lora`.", "与 `init_lora` 配套的平均权重。", level="expert",
        planned="continuing the averaged weights of an adapter file",
    )  # fmt: skip
    lycoris_config: str | None = option(
        None,
        "JSON file of the LyCORIS settings: kind, size, layers.",
        "LyCORIS 设置的 JSON 文件：种类、大小、层。",
        guide=True,
    )
    init_lokr_norm: float | None = option(
        None,
        "Norm of the random start of LoKr.",
        "LoKr 随机初始化的范数。",
        ge=0,
        level="expert",
        planned="starting LoKr from small random values",
    )
    validation_lycoris_strength: float = option(
        1.0, "Strength of a LyCORIS adapter while validating.", "验证时 LyCORIS 适配器的强度。", ge=0, level="expert"
    )  # fmt: skip
    tread_config: Any = option(
        None, "Token routing of TREAD.", "TREAD 的 token 路由设置。", level="expert", planned="token routing (TREAD)"
    )
