"""The shape of the adapter."""

from __future__ import annotations

from typing import Any, Literal

from simpletuner.config.option import Section, option

# Where slider adapters act: on what each clip attends to in itself, and on how the noise level is read.
SLIDER_LAYERS = (
    "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "time_embed.emb.timestep_embedder.linear_1",
    "time_embed.emb.timestep_embedder.linear_2", "time_embed.linear",
)  # fmt: skip


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
        False,
        "Put the adapter where slider adapters have it: self-attention (`attn1`) and the time embedding. "
        "`peft_lora_target_modules` goes before it.",
        "采用滑块（slider）适配器的层：自注意力（`attn1`）与时间嵌入。`peft_lora_target_modules` 优先。",
        level="expert",
    )
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
        "Adapter file to start from, in any layout; the step count starts at 0, or at `init_lora_step`.",
        "作为起点的适配器文件，任何命名方式均可；步数从 0 或 `init_lora_step` 开始。",
        level="advanced",
    )
    init_lora_step: int | None = option(
        None,
        "Steps that `init_lora` was trained for: numbering, learning rate and the order of the clips go on from there. "
        "The optimizer begins anew; only a checkpoint continues exactly, and where one is found it wins.",
        "`init_lora` 已训练的步数：步数编号、学习率与视频顺序由此继续。优化器从头开始；只有检查点能精确续训，"
        "若存在检查点则以其为准。",
        ge=0,
        unit="steps",
        level="expert",
    )
    init_lora_ema: str | None = option(
        None,
        "Averaged weights which belong to `init_lora`: the file in `ema/` of its run, or `ema.safetensors` of a "
        "checkpoint. Needs `use_ema`; without it the average starts at `init_lora`.",
        "与 `init_lora` 配套的平均权重：该次运行 `ema/` 中的文件，或检查点的 `ema.safetensors`。需要 `use_ema`；"
        "未给出时平均值从 `init_lora` 开始。",
        level="expert",
    )
    lycoris_config: str | None = option(
        None,
        "JSON file of the LyCORIS settings: kind, size, layers.",
        "LyCORIS 设置的 JSON 文件：种类、大小、层。",
        guide=True,
    )
    init_lokr_norm: float | None = option(
        None,
        "Let LoKr begin as a small noisy copy of the weights, of this share of their size (1e-4 to 1e-3), instead of "
        "as no change.",
        "让 LoKr 以权重的带噪小副本开始（相对大小为该值，1e-4 至 1e-3），而不是从零变化开始。",
        ge=0,
        level="expert",
    )
    validation_lycoris_strength: float = option(
        1.0, "Strength of a LyCORIS adapter while validating.", "验证时 LyCORIS 适配器的强度。", ge=0, level="expert"
    )  # fmt: skip
    tread_config: Any = option(
        None, "Token routing of TREAD.", "TREAD 的 token 路由设置。", level="expert",
        refused="tokens of a video that are left out take their places and, with a given first frame, their times with "
        "them, and LTX-Video's blocks get both for all tokens",
    )  # fmt: skip
