"""Number formats of the weights."""

from __future__ import annotations

from typing import Any, Literal

from simpletuner.config.catalogs.precisions import REFUSED, REFUSED_FOR_TEXT
from simpletuner.config.option import Section, option

QUANTIZED = "quantized weights"
SDNQ = ("int8", "uint8", "int16", "uint16", "fp16", "fp8", "int6", "int5", "uint5", "uint4", "uint3", "uint2")
LEVELS = ("int4-torchao", *(f"{kind}-sdnq" for kind in SDNQ))


def _levels() -> dict[str, str]:
    return {level: f"the quantization level '{level}'" for level in LEVELS}


class PrecisionSection(Section):
    mixed_precision: Literal["no", "bf16"] = option(
        "bf16",
        "Number format of the frozen weights and of the arithmetic; `no` is float32.",
        "冻结权重与运算的数值格式；`no` 即 float32。",
        guide=True,
        planned_values={
            "fp16": "fp16 arithmetic, whose narrow range LTX-Video's activations leave,",
            "fp8": "fp8 arithmetic",
        },
    )
    vae_dtype: Literal["default", "fp32", "bf16"] = option(
        "bf16",
        "Number format of the autoencoder while encoding and decoding.",
        "自编码器编码与解码时的数值格式。",
        planned_values={"fp16": "an fp16 autoencoder, whose narrow range LTX-Video's activations leave,"},
    )
    base_model_precision: str = option(
        "no_change",
        "How the blocks of the frozen base model are stored: fewer bits save memory, not time; `no_change` keeps them. "
        "`int8dq-torchao` and `fp8-native` multiply in 8 bits too; each start tells whether that is faster.",
        "冻结的基础模型各模块的存储方式：位数越少越省显存（不省时间）；`no_change` 保持原样。"
        "`int8dq-torchao` 与 `fp8-native` 还以 8 位做乘法；每次启动都会告知是否更快。",
        guide=True,
        catalog="simpletuner.config.catalogs.precisions:PRECISIONS",
        planned_values=_levels(),
        refused_values=REFUSED,
    )
    base_model_default_dtype: Literal["bf16", "fp32"] = option(
        "bf16",
        "Number format of those parts of a quantized base model that stay unquantized.",
        "量化基础模型中未量化部分的数值格式。",
        guide=True,
    )
    text_encoder_1_precision: str = option(
        "no_change",
        "How the blocks of the T5 text encoder are stored while captions are encoded.",
        "编码字幕时 T5 文本编码器各模块的存储方式。",
        guide=True,
        catalog="simpletuner.config.catalogs.precisions:PRECISIONS",
        planned_values=_levels(),
        refused_values={**REFUSED, **REFUSED_FOR_TEXT},
    )
    text_encoder_2_precision: str = option(
        "no_change", "LTX-Video has one text encoder.", "LTX-Video 只有一个文本编码器。", level="expert", guide=True,
        accepted_note="LTX-Video has one text encoder, so this changes nothing",
    )  # fmt: skip
    text_encoder_3_precision: str = option(
        "no_change", "LTX-Video has one text encoder.", "LTX-Video 只有一个文本编码器。", level="expert", guide=True,
        accepted_note="LTX-Video has one text encoder, so this changes nothing",
    )  # fmt: skip
    text_encoder_4_precision: str = option(
        "no_change", "LTX-Video has one text encoder.", "LTX-Video 只有一个文本编码器。", level="expert", guide=True,
        accepted_note="LTX-Video has one text encoder, so this changes nothing",
    )  # fmt: skip
    quantize_via: Literal["cpu", "accelerator", "pipeline"] = option(
        "cpu",
        "Where the base model is quantized, layer by layer while it is read: `cpu` is slower, the two others mean the "
        "computing device.",
        "读取基础模型时逐层量化的位置：`cpu` 较慢，另外两个值均指计算设备。",
        guide=True,
    )
    quantized_base_cache: bool = option(
        True,
        "Keep the quantized base model in `<cache_dir>/quantized`, verified, so that later starts need not quantize "
        "it again.",
        "将量化后的基础模型（带校验）保存在 `<cache_dir>/quantized`，以后启动时无需再次量化。",
        level="advanced",
    )
    quantization_config: Any = option(
        None, "Settings for `quantize_via: pipeline`.", "`quantize_via: pipeline` 的设置。", level="expert",
        planned=QUANTIZED,
    )  # fmt: skip
    quantize_activations: bool = option(
        False, "Quantize activations too.", "同时量化激活值。", level="expert", planned=QUANTIZED
    )
    gradient_precision: Literal["unmodified", "fp32"] | None = option(
        None,
        "Number format in which gradients of several micro-batches are added up: `fp32` (also when absent), or the "
        "parameters' own (`unmodified`), which takes 2 bytes per trained value less and rounds each sum.",
        "累加多个微批次梯度时的数值格式：`fp32`（未给出时亦然），或与参数相同（`unmodified`），"
        "每个被训练的值少占 2 字节，但每次求和都会舍入。",
        level="expert",
    )
    disable_tf32: bool = option(
        False,
        "Compute products of float32 numbers in full on CUDA devices, instead of with 10 bits of mantissa (TF32), "
        "which is several times as fast. It matters for float32 runs and float32 autoencoders.",
        "在 CUDA 设备上以完整精度计算 float32 乘积，而不是使用快数倍的 TF32（10 位尾数）。"
        "对 float32 训练与 float32 自编码器有影响。",
        level="advanced",
    )
