"""Which model is trained, and where its parts come from."""

from __future__ import annotations

from typing import Any, Literal

from simpletuner.config.catalogs.attention import NO_SAGE_GRADIENT, REFUSED
from simpletuner.config.option import Section, option


class ModelSection(Section):
    model_family: Literal["ltxvideo"] | None = option(
        None,
        "Architecture to train; this trainer knows `ltxvideo`.",
        "要训练的架构；本训练器支持 `ltxvideo`。",
        guide=True,
    )
    model_flavour: str | None = option(
        None,
        "Release of the model when no path is given.",
        "未给出路径时使用的模型版本。",
        catalog="simpletuner.config.catalogs.families:FLAVOURS",
    )
    model_type: Literal["lora", "full"] | None = option(
        None,
        "Train a small adapter (`lora`) or all weights (`full`).",
        "训练小型适配器（`lora`）或全部权重（`full`）。",
        guide=True,
    )
    pretrained_model_name_or_path: str | None = option(
        None,
        "Base checkpoint: a Hub repository or a local Diffusers folder.",
        "基础检查点：Hub 仓库或本地 Diffusers 文件夹。",
        guide=True,
    )
    pretrained_vae_model_name_or_path: str | None = option(
        None,
        "Where the autoencoder comes from; empty means the base checkpoint.",
        "自编码器（VAE）的来源；留空表示使用基础检查点。",
        guide=True,
    )
    pretrained_transformer_model_name_or_path: str | None = option(
        None,
        "Replaces only the transformer weights: a Hub repository, a folder or one file.",
        "只替换 transformer 权重：Hub 仓库、文件夹或单个文件。",
        guide=True,
    )
    pretrained_transformer_subfolder: str = option(
        "transformer",
        "Folder of the transformer inside its repository; `none` means the root.",
        "transformer 在其仓库中的文件夹；`none` 表示根目录。",
        guide=True,
    )
    pretrained_t5_model_name_or_path: str | None = option(
        None,
        "Alternative source of the T5 text encoder and its tokenizer.",
        "T5 文本编码器及其分词器的其他来源。",
    )
    revision: str | None = option(
        None, "Git revision of the base repository.", "基础仓库的 Git 版本。", level="advanced"
    )
    variant: str | None = option(
        None, "File variant of the weights, such as `fp16`.", "权重文件的变体，例如 `fp16`。", level="advanced"
    )
    tokenizer_max_length: int = option(
        128,
        "Text tokens per prompt, in training and validation alike.",
        "每条提示词的文本 token 数，训练与验证相同。",
        ge=8,
        le=512,
        unit="tokens",
        level="advanced",
    )
    ltx_positions: Literal["auto", "plain", "causal"] = option(
        "auto",
        "Time positions of latent frames: `plain` up to 0.9.1, `causal` from 0.9.5; `auto` follows the release.",
        "潜变量帧的时间位置：0.9.1 及以前为 `plain`，0.9.5 起为 `causal`；`auto` 跟随模型版本。",
        level="expert",
    )
    attention_mechanism: str = option(
        "diffusers",
        "Attention kernel; with `diffusers` PyTorch chooses. Those that take no mask are used within clips, not for "
        "text; those without gradients (SageAttention) for validation only.",
        "注意力内核；`diffusers` 由 PyTorch 选择。不支持掩码的内核只用于视频内部，不用于文本；"
        "没有梯度的内核（SageAttention）仅用于验证。",
        guide=True,
        catalog="simpletuner.config.catalogs.attention:ATTENTION",
        refused_values=REFUSED,
    )
    sageattention_usage: Literal["inference"] = option(
        "inference",
        "Where SageAttention is used; it has no gradient, so only inference makes sense.",
        "SageAttention 的使用位置；它没有梯度，因此只适用于推理。",
        level="expert",
        refused_values=dict.fromkeys(("training", "training+inference"), NO_SAGE_GRADIENT),
    )
    sla_config: Any = option(None, "Settings of the SLA kernel.", "SLA 内核的设置。", level="expert",
                             refused="the attention kernel 'sla' is not taken: it leaves most scores out")  # fmt: skip
    dynamo_backend: Literal["no", "inductor", "aot_eager", "eager"] = option(
        "no",
        "Compile the blocks of the transformer by torch.compile with this backend (`inductor` is the fast one); videos "
        "and evaluation are computed as without it.",
        "用此后端通过 torch.compile 编译 Transformer 各模块（`inductor` 最快）；视频与评估仍按未编译方式计算。",
        level="advanced",
        refused_values={
            "cudagraphs": "graphs of the card come with dynamo_mode; use inductor with dynamo_mode reduce-overhead",
            "tensorrt": "it is for sampling, no gradient passes; use inductor",
            "openxla": "it is for devices that are not trained on here; use inductor",
        },
    )
    dynamo_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = option(
        None,
        "Mode of inductor: `max-autotune-no-cudagraphs` searches for faster kernels at a longer first step; "
        "`reduce-overhead` and `max-autotune` also record graphs of the card.",
        "inductor 的模式：`max-autotune-no-cudagraphs` 以更长的首步换取更快的内核；"
        "`reduce-overhead` 与 `max-autotune` 还会录制显卡计算图。",
        level="expert",
    )
    dynamo_fullgraph: bool = option(
        False, "Stop where a block cannot be compiled as one piece.", "某个模块无法整体编译时停止。", level="expert"
    )
    dynamo_dynamic: bool = option(
        False,
        "One graph for clips of all sizes, slower than one for each size; with many buckets it saves warm-up.",
        "各种尺寸的视频共用一个计算图，比每种尺寸各一个慢；分桶很多时可节省预热时间。",
        level="expert",
    )
    dynamo_use_regional_compilation: bool = option(
        False, "Compile one block and reuse it.", "编译一个块并重复使用。", level="expert",
        accepted_note="blocks are always compiled one by one",
    )  # fmt: skip
    delete_model_after_load: bool = option(
        False, "Remove downloaded weights from the Hub cache once they are loaded.",
        "加载后从 Hub 缓存删除已下载的权重。",
        level="expert", planned="removing downloaded weights after loading",
    )  # fmt: skip
    trust_remote_code: bool = option(
        False, "Run code that comes with a checkpoint.", "运行检查点自带的代码。", level="expert",
        refused="LTX-Video needs no code from its repository, and running such code is a risk",
    )  # fmt: skip
    i_know_what_i_am_doing: bool = option(
        False, "Lift safety stops.", "解除安全限制。", level="expert",
        accepted_note="this trainer has no safety stop that the option could lift",
    )  # fmt: skip
