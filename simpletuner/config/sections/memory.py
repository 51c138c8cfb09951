"""What is kept in memory, and what is computed again."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge

from simpletuner.config.option import Section, option

RAMTORCH = "RamTorch offload"


def clips_per_pass(clips: int, cells: int, limit: int | None) -> int:
    """Clips of `cells` latent cells that go through the model at once, of a batch of `clips`; at least one."""
    return clips if limit is None else max(1, min(clips, limit // max(cells, 1)))


class MemorySection(Section):
    memory_budget: str | None = option(
        None,
        "Memory of the card that the run may take, such as 10GB, or auto for all of this machine's card. Options that "
        "nobody set are then chosen so that the run fits, and told with the reason: recomputed blocks, precision of "
        "the base, streamed blocks, treatment of text encoder and autoencoder.",
        "运行可占用的显存，如 10GB；auto 表示本机显卡的全部显存。未手动设置的选项会据此自动选择并说明理由："
        "重算块数、基础模型精度、流式取用的块、文本编码器与自编码器的处理方式。",
    )
    memory_probe: bool = option(
        True,
        "Before step 1, take two steps on the largest batch and undo them: what does not fit is known at once, and the "
        "memory it took is told beside the forecast.",
        "在第 1 步之前用最大的批次试跑两步并撤销：放不下会立即得知，实际占用会与预估一同显示。",
        level="advanced",
    )
    gradient_checkpointing: bool = option(
        True,
        "Compute activations again in the backward pass instead of keeping them.",
        "反向传播时重新计算激活值而不是保留它们。",
        guide=True,
    )
    gradient_checkpointing_interval: int | None = option(
        None,
        "Recompute only every n-th block: faster, more memory. 0 and 1 recompute all.",
        "只重算每第 n 个块：更快，占用更多内存。0 和 1 表示全部重算。",
        ge=0,
        guide=True,
        level="advanced",
    )
    gradient_checkpointing_blocks: Annotated[int, Ge(0)] | Literal["auto"] | None = option(
        None,
        "How many blocks are recomputed, spread evenly; wins over the interval. Absent means all, auto the fewest "
        "with which training fits the card or memory_budget.",
        "重算多少个块，均匀分布；优先于 interval。未给出时为全部；auto 表示能放进显卡或 memory_budget 的最少块数。",
        unit="blocks",
        level="advanced",
    )
    max_tokens_per_pass: int | None = option(
        None,
        "Compute a batch with more latent cells in parts of at most so many, at least one clip each: the same batch, "
        "and the same result up to rounding, in less memory. Absent means in one piece.",
        "潜空间单元数超过该值的批次分成若干部分计算（每部分至少一个视频）：批次与结果不变（仅有舍入差别），占用更少内存。"
        "未给出时整批计算。",
        ge=1,
        unit="tokens",
        level="advanced",
    )
    gradient_checkpointing_segment_stride: int | None = option(
        None, "Distance between checkpointed segments.", "检查点段之间的距离。", ge=0, level="expert", neutral=(0, 1),
        refused="each block is a segment of its own; gradient_checkpointing_blocks sets how many are recomputed",
    )  # fmt: skip
    gradient_checkpointing_backend: Literal["torch"] = option(
        "torch", "Implementation of gradient checkpointing.", "梯度检查点的实现。", level="expert",
        planned_values={
            value: f"the checkpointing backend '{value}'" for value in ("torch-ffn", "unsloth", "unsloth-ffn")
        },
    )  # fmt: skip
    gradient_checkpointing_offload_attention: bool = option(
        False, "Let what the backward pass will need wait in the machine's memory, and bring it back ahead of its use "
        "(CUDA; elsewhere there is no other place).",
        "让反向传播所需的激活值在内存中等待，并在使用前取回（CUDA；其他设备上没有别处可放）。", level="expert",
    )  # fmt: skip
    gradient_checkpointing_keep_attention: bool = option(
        False, "Recomputed blocks keep the results of their attention: a little more memory, and the part that costs "
        "most in long clips is not computed twice.",
        "重算的块保留其注意力结果：多占少量显存，长视频中最耗时的部分不再重复计算。", level="advanced",
    )  # fmt: skip
    offload_during_startup: bool = option(
        False,
        "Never hold the autoencoder and the text encoder in memory together.",
        "自编码器与文本编码器绝不同时占用内存。",
        guide=True,
        accepted_note="encoders and transformer are never in memory together anyway: each is loaded alone and dropped; "
        "only caches that are filled on demand keep theirs",
    )
    offload_during_save: bool = option(
        False, "Move models to the CPU while a checkpoint is written.", "写检查点时将模型移到 CPU。", level="expert",
        accepted_note="tensors are copied to the CPU one by one anyway when a checkpoint is written",
    )  # fmt: skip
    enable_group_offload: bool = option(
        False, "Keep groups of transformer blocks in RAM and fetch them when needed.",
        "将 transformer 块分组放在内存中，需要时再取。",
        guide=True, excludes=("enable_model_cpu_offload", "ramtorch", "musubi_blocks_to_swap"),
    )  # fmt: skip
    group_offload_type: Literal["block_level", "leaf_level"] = option(
        "block_level",
        "Granularity of group offload. Leaf level streams single blocks: going backward, a block needs all its "
        "weights together.",
        "组卸载的粒度。leaf_level 按单个块流式取用：反向传播时一个块需要同时持有其全部权重。",
        guide=True, level="advanced",
    )  # fmt: skip
    group_offload_blocks_per_group: int = option(
        1, "Blocks fetched together; two such groups are on the device at a time.",
        "一次取回的块数；设备上同时最多有两组。", ge=1, guide=True, level="advanced",
    )  # fmt: skip
    group_offload_use_stream: bool = option(
        False, "Overlap copies with arithmetic (CUDA; elsewhere it has no effect).",
        "让复制与计算重叠（CUDA；其他设备上无效）。", guide=True, level="advanced",
    )  # fmt: skip
    group_offload_to_disk_path: str | None = option(
        None, "Folder for offloaded weights when RAM is short; each run has its own folder in it.",
        "内存不足时存放卸载权重的文件夹；每次运行在其中使用自己的子文件夹。", guide=True, level="advanced",
    )  # fmt: skip
    group_offload_text_encoder: bool = option(
        False,
        "Stream the text encoder's blocks too, for cards that cannot hold it.",
        "文本编码器的块也流式取用，适合放不下它的显卡。",
        level="expert",
    )
    group_offload_vae: bool = option(
        False,
        "Offload the autoencoder in groups too.",
        "自编码器也分组卸载。",
        level="expert",
        refused="the autoencoder has no row of equal blocks; vae_enable_tiling and vae_enable_slicing bound its memory",
    )
    enable_model_cpu_offload: bool = option(
        False, "Keep the frozen transformer in RAM while validation videos are decoded, so that transformer and "
        "autoencoder are never on the card together.",
        "解码验证视频时将冻结的 transformer 放在内存中，使其与自编码器不同时占用显存。", guide=True,
    )  # fmt: skip
    musubi_blocks_to_swap: int = option(
        0, "Number of last blocks that stay in RAM and are streamed.", "留在内存并流式取用的末尾块数。", ge=0, le=27,
        level="advanced",
    )  # fmt: skip
    musubi_block_swap_device: Literal["cpu"] = option(
        "cpu", "Where swapped blocks stay.", "被交换的块存放的位置。", level="expert"
    )
    ramtorch: bool = option(
        False, "Keep linear layers in RAM and stream them per call.", "将线性层放在内存，每次调用时流式取用。",
        level="advanced", planned=RAMTORCH,
    )  # fmt: skip
    ramtorch_target_modules: str | None = option(
        None, "Name patterns of the streamed layers.", "流式取用的层名模式。", level="expert", planned=RAMTORCH
    )
    ramtorch_transformer_percent: int = option(
        100, "Share of the transformer that is streamed.",
        "流式取用的 transformer 百分比。", ge=0, le=100, unit="percent",
        level="expert", planned=RAMTORCH,
    )  # fmt: skip
    ramtorch_text_encoder: bool = option(
        False, "Stream the text encoder too.", "文本编码器也流式取用。", level="expert", planned=RAMTORCH
    )
    ramtorch_text_encoder_percent: int = option(
        100, "Share of the text encoder that is streamed.",
        "流式取用的文本编码器百分比。", ge=0, le=100, unit="percent",
        level="expert", planned=RAMTORCH,
    )  # fmt: skip
    ramtorch_vae: bool = option(
        False, "Stream the autoencoder too.", "自编码器也流式取用。", level="expert", planned=RAMTORCH
    )
    accelerator_cache_clear_interval: int | None = option(
        None, "Empty the allocator's cache every n steps.", "每 n 步清空一次显存分配器缓存。", ge=0, unit="steps",
        level="expert", planned="emptying the allocator's cache", neutral=(0,),
    )  # fmt: skip
    set_grads_to_none: bool = option(
        True,
        "Drop gradients after a step; false keeps their memory and zeroes it.",
        "每步后丢弃梯度；false 则保留其内存并清零。",
        level="expert",
    )

    @property
    def streams_blocks(self) -> bool:
        """Whether blocks of the transformer wait in RAM or on disk and are brought when their turn comes."""
        return self.enable_group_offload or self.musubi_blocks_to_swap > 0

    @property
    def blocks_per_group(self) -> int:
        """Blocks that are brought together."""
        grouped = self.enable_group_offload and self.group_offload_type == "block_level"
        return self.group_offload_blocks_per_group if grouped else 1

    def blocks_recomputed(self, blocks: int) -> int:
        """How many of so many blocks compute their activations again in the backward pass."""
        if not self.gradient_checkpointing:
            return 0
        if self.gradient_checkpointing_blocks == "auto":
            return blocks  # until `recipes/memory_plan.py` has solved it
        if self.gradient_checkpointing_blocks is not None:
            return min(self.gradient_checkpointing_blocks, blocks)
        return -(-blocks // (self.gradient_checkpointing_interval or 1))

    def blocks_streamed(self, blocks: int) -> int:
        """How many of so many blocks do not stay on the device."""
        return blocks if self.enable_group_offload else min(self.musubi_blocks_to_swap, blocks)
