"""Further objectives beside flow matching: frame alignment (CREPA), roll-out, auxiliary losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from simpletuner.config.option import Section, option

AUXILIARY = "this auxiliary loss"


FeatureSource = Literal["encoder", "backbone", "self_flow"]


def feature_source_of(values: Mapping[str, Any]) -> FeatureSource:
    """Where CREPA's features come from by these option values, old spellings included."""
    if values["crepa_self_flow"]:
        return "self_flow"
    source: FeatureSource = values["crepa_feature_source"]
    return "backbone" if values["crepa_use_backbone_features"] else source


class CrepaSection(Section):
    crepa_enabled: bool = option(
        False, "Align hidden states with vision features of neighbouring frames.", "使隐藏状态与相邻帧的视觉特征对齐。",
        guide=True,
    )  # fmt: skip
    crepa_block_index: int = option(
        8, "Transformer block that is aligned, from 0.", "被对齐的 transformer 块序号，从 0 开始。", ge=0, guide=True,
    )  # fmt: skip
    crepa_lambda: float = option(0.5, "Weight of the term.", "该项的权重。", ge=0, guide=True)
    crepa_adjacent_distance: int = option(
        1, "Distance to the neighbouring frames.", "与相邻帧的距离。", ge=0, unit="frames", guide=True
    )
    crepa_adjacent_tau: float = option(
        1.0, "How slowly a neighbour's weight fades with distance.", "邻帧权重随距离衰减的快慢。", gt=0, guide=True,
    )  # fmt: skip
    crepa_cumulative_neighbors: bool = option(
        False, "Use all distances up to the given one.", "使用不超过该距离的所有邻帧。", level="advanced"
    )
    crepa_encoder: str = option(
        "dinov2_vitg14", "Vision encoder.", "视觉编码器。", aliases=("crepa_model",), guide=True
    )
    crepa_encoder_image_size: int = option(
        518, "Picture size the encoder sees.", "视觉编码器的输入尺寸。", ge=64, unit="px", guide=True
    )
    crepa_drop_vae_encoder: bool = option(
        False, "Free the encoder half of the autoencoder.", "释放自编码器的编码部分。", guide=True,
        accepted_note="the copy of the autoencoder that decodes for CREPA never keeps its encoder, and with "
        "crepa_cache_features there is none while training",
    )  # fmt: skip
    crepa_encoder_frames_batch_size: int = option(
        -1, "Frames per encoder call; -1 means all.", "每次编码的帧数；-1 表示全部。", level="expert"
    )
    crepa_use_tae: bool = option(
        False, "Decode with a tiny autoencoder.", "用小型自编码器解码。", level="expert",
        refused="features are made once and cached, so a smaller decoder would save nothing that is paid per step",
    )  # fmt: skip
    crepa_cache_features: bool = option(
        True,
        "Make the vision features once, in the caching stage; then neither encoder nor autoencoder is in memory while "
        "training. Off: decode and encode at every step.",
        "在缓存阶段一次性生成视觉特征，训练时内存中既无视觉编码器也无自编码器。关闭：每步都解码并编码。",
    )
    crepa_projector_learning_rate: float = option(
        1e-4, "Learning rate of the projector, which has an AdamW of its own.",
        "投影器的学习率，它使用自己的 AdamW。", gt=0, level="advanced",
    )  # fmt: skip
    crepa_spatial_align: bool = option(
        True, "Compare patch by patch instead of pooled.", "逐块比较而不是池化。", level="expert"
    )
    crepa_normalize_by_frames: bool = option(True, "Average over frames.", "对帧取平均。", level="expert")
    crepa_normalize_neighbour_sum: bool = option(
        False, "Divide by the sum of neighbour weights.", "除以邻帧权重之和。", level="expert"
    )
    crepa_feature_source: FeatureSource = option(
        "encoder",
        "Where the reference features come from: a vision encoder, a later block of the model itself, or (self_flow) "
        "that later block looking at a cleaner clip.",
        "参考特征的来源：视觉编码器、模型自身更靠后的块，或（self_flow）该块观看噪声更少的片段时的输出。",
        level="expert",
    )
    crepa_use_backbone_features: bool = option(
        False, "Old form of `crepa_feature_source: backbone`.", "`crepa_feature_source: backbone` 的旧写法。",
        level="expert",
    )  # fmt: skip
    crepa_self_flow: bool = option(
        False, "Old form of `crepa_feature_source: self_flow`.", "`crepa_feature_source: self_flow` 的旧写法。",
        level="expert",
    )  # fmt: skip
    crepa_self_flow_mask_ratio: float = option(
        0.1,
        "Share of the tokens that self-flow shows at another noise level.",
        "self-flow 以另一噪声水平展示的 token 比例。",
        ge=0,
        le=0.5,
        level="expert",
    )
    crepa_teacher_block_index: int | None = option(
        None,
        "Block that teaches, with features of the backbone or self-flow.",
        "使用骨干特征或 self-flow 时的教师块。",
        ge=0,
        level="expert",
    )
    crepa_scheduler: Literal["constant", "linear", "cosine", "polynomial"] = option(
        "constant", "Course of the term's weight.", "权重的变化曲线。", level="advanced"
    )
    crepa_warmup_steps: int = option(
        0, "Steps over which the term is faded in.", "该项逐步加入的步数。", ge=0, unit="steps", level="advanced",
    )  # fmt: skip
    crepa_decay_steps: int = option(
        0, "Steps over which the term fades; 0 means the whole run.",
        "该项衰减的步数；0 表示整个训练。", ge=0, unit="steps",
        level="advanced",
    )  # fmt: skip
    crepa_lambda_end: float = option(0.0, "Weight at the end.", "结束时的权重。", ge=0, level="advanced")
    crepa_power: float = option(1.0, "Exponent of that course.", "该曲线的指数。", gt=0, level="expert")
    crepa_cutoff_step: int = option(
        0, "Step after which the term is off; 0 means never.", "此步之后关闭该项；0 表示从不。", ge=0, unit="steps",
        level="advanced",
    )  # fmt: skip
    crepa_similarity_threshold: float | None = option(
        None,
        "Similarity at which the term is switched off.",
        "关闭该项的相似度阈值。",
        le=1,
        level="expert",
    )
    crepa_similarity_ema_decay: float = option(
        0.99, "Smoothing of that similarity.", "该相似度的平滑系数。", ge=0, lt=1, level="expert"
    )
    crepa_threshold_mode: Literal["permanent", "recoverable"] = option(
        "permanent", "Whether it stays off.", "是否永久关闭。", level="expert"
    )

    @property
    def feature_source(self) -> FeatureSource:
        """Where the features come from, old spellings included."""
        return feature_source_of(vars(self))

    @property
    def needs_encoder(self) -> bool:
        """Whether a vision encoder teaches."""
        return self.crepa_enabled and self.feature_source == "encoder"


class RolloutSection(Section):
    scheduled_sampling_max_step_offset: int = option(
        0, "Steps the model makes its own input from; 0 is off.",
        "模型自行生成输入的步数；0 表示关闭。", ge=0, unit="steps",
        guide=True,
    )  # fmt: skip
    scheduled_sampling_probability: float = option(
        0.0, "Chance per sample.", "每个样本的概率。", ge=0, le=1, guide=True
    )
    scheduled_sampling_prob_start: float = option(
        0.0, "Chance at the start.", "起始概率。", ge=0, le=1, level="advanced"
    )
    scheduled_sampling_prob_end: float = option(0.5, "Chance at the end.", "结束概率。", ge=0, le=1, level="advanced")
    scheduled_sampling_ramp_steps: int = option(
        0, "Steps of the ramp.", "爬升的步数。", ge=0, unit="steps", level="advanced"
    )
    scheduled_sampling_start_step: int = option(
        0, "Step at which it begins.", "开始的步数。", ge=0, unit="steps", level="advanced"
    )
    scheduled_sampling_ramp_shape: Literal["linear", "cosine"] = option(
        "linear", "Shape of the ramp.", "爬升的形状。", level="expert"
    )
    scheduled_sampling_strategy: Literal["uniform", "biased_early", "biased_late"] = option(
        "uniform", "How the start is chosen.", "起点的选择方式。", level="expert"
    )
    scheduled_sampling_sampler: Literal["unipc", "euler", "dpm"] = option(
        "unipc", "Sampler of the roll-out.", "展开所用的采样器。", level="expert"
    )
    scheduled_sampling_order: int = option(
        2, "Order of that sampler: 2 for unipc, 1 or 2 for dpm; euler has only one.",
        "该采样器的阶数：unipc 为 2，dpm 为 1 或 2；euler 只有一种。", ge=1, level="expert",
    )  # fmt: skip
    scheduled_sampling_grid_steps: int = option(
        40, "Length of the inference schedule whose levels the roll-out passes through.",
        "展开所经过的推理时间表的步数。", ge=2, unit="steps", level="advanced",
    )  # fmt: skip
    scheduled_sampling_target: Literal["path", "reached"] = option(
        "path",
        "What is trained where the roll-out arrives: the velocity of the true path, or the one that leads from there "
        "to the clip.",
        "在展开到达处训练什么：真实路径的速度，或从该处通向视频的速度。",
        level="advanced",
    )
    scheduled_sampling_reflexflow: bool | None = option(
        None,
        "ReflexFlow's terms against drift; absent means on.",
        "ReflexFlow 抗漂移项；未给出时开启。",
        level="expert",
    )
    scheduled_sampling_reflexflow_alpha: float = option(
        1.0, "Extra weight of what the roll-out has changed.", "展开所改变之处的附加权重。", ge=0, level="expert"
    )
    scheduled_sampling_reflexflow_beta1: float = option(
        10.0, "Weight of its anti-drift term.", "其抗漂移项的权重。", ge=0, level="expert"
    )
    scheduled_sampling_reflexflow_beta2: float = option(
        1.0, "Factor on the whole loss of what is rolled out.", "对展开样本整个损失的系数。", ge=0, level="expert"
    )

    @property
    def reflexflow(self) -> bool:
        """Whether ReflexFlow's terms are used; without a word they are, as for every flow model."""
        return self.scheduled_sampling_reflexflow is not False

    @property
    def extra_forwards(self) -> float:
        """Forward passes that a batch may cost more, on average over offsets, at the highest chance."""
        ramps = self.scheduled_sampling_ramp_steps > 0
        chance = self.scheduled_sampling_prob_end if ramps else self.scheduled_sampling_probability
        offset = self.scheduled_sampling_max_step_offset
        return chance * (offset / 2 + self.reflexflow) if offset else 0.0

    @property
    def solver_order(self) -> int:
        """Order of the sampler."""
        return 1 if self.scheduled_sampling_sampler == "euler" else self.scheduled_sampling_order


class AuxiliarySection(Section):
    temporal_difference_weight: float = option(
        0.0, "Weight of a term on the changes from one latent frame to the next; 0 is off.",
        "相邻潜在帧之间变化项的权重；0 表示关闭。", ge=0, level="advanced",
    )  # fmt: skip
    layersync_enabled: bool = option(
        False, "Align one block with a later one.", "使一个块与后面的块对齐。", level="expert", planned=AUXILIARY
    )
    layersync_student_block: int | None = option(
        None, "Block that learns.", "学习的块。", ge=0, level="expert", planned=AUXILIARY
    )
    layersync_teacher_block: int | None = option(
        None, "Block that teaches.", "教师块。", ge=0, level="expert", planned=AUXILIARY
    )
    layersync_lambda: float = option(
        0.2, "Weight of the term.", "该项的权重。", ge=0, level="expert", planned=AUXILIARY
    )
    irepa_enabled: bool = option(
        False, "Spatially normalised alignment.", "空间归一化的对齐。", level="expert", planned=AUXILIARY
    )
    irepa_spatial_norm_alpha: float = option(
        0.6, "Strength of that normalisation.", "归一化强度。", ge=0, level="expert", planned=AUXILIARY
    )
    irepa_projector_kernel_size: int = option(
        3, "Kernel of its projector.", "投影器的卷积核大小。", ge=1, le=7, level="expert", planned=AUXILIARY
    )
    internal_guidance_enabled: bool = option(
        False, "Train an early exit that guides.", "训练用于引导的提前输出。", level="expert", planned=AUXILIARY
    )
    internal_guidance_loss_weight: float = option(
        0.5, "Weight of the term.", "该项的权重。", ge=0, level="expert", planned=AUXILIARY
    )
    internal_guidance_block_index: int | None = option(
        None, "Block of the early exit.", "提前输出所在的块。", ge=0, level="expert", planned=AUXILIARY
    )
    validation_internal_guidance_scale: float = option(
        1.0, "Strength while validating.", "验证时的强度。", ge=0, level="expert", planned=AUXILIARY
    )
    nextlat_enabled: bool = option(
        False, "Predict the next state.", "预测下一状态。", level="expert", planned=AUXILIARY
    )
    nextlat_block_index: int = option(-1, "Block of that state.", "该状态所在的块。", level="expert", planned=AUXILIARY)
    nextlat_weight: float = option(0.0, "Weight of the term.", "该项的权重。", ge=0, level="expert", planned=AUXILIARY)
    nextlat_state_loss: Literal["smooth_l1", "mse"] = option(
        "smooth_l1", "Loss of the term.", "该项的损失。", level="expert", planned=AUXILIARY
    )
    nextlat_kl_weight: float = option(0.0, "Weight of its second part.", "第二部分的权重。", ge=0, level="expert",
                                      planned=AUXILIARY)  # fmt: skip
    xm_enabled: bool = option(False, "Train on the best of several candidates.",
                              "在多个候选中选最优训练。", level="expert",
                              planned=AUXILIARY)  # fmt: skip
    xm_candidate_count: int | None = option(None, "Number of candidates.", "候选数量。", ge=1, level="expert",
                                            planned=AUXILIARY)  # fmt: skip
    xm_training_target: str | None = option(None, "What is trained.", "训练目标。", level="expert", planned=AUXILIARY)
    xm_selection_scope: str | None = option(
        None, "Scope of the choice.", "选择范围。", level="expert", planned=AUXILIARY
    )
    xm_block_size: int | None = option(None, "Size of its blocks.", "块大小。", ge=1, level="expert", planned=AUXILIARY)
    diffusion_blocks_config: Any = option(
        None, "Settings of block-wise training.", "逐块训练的设置。", level="expert", planned="block-wise training"
    )
    twinflow_enabled: bool = option(
        False,
        "Train for few-step generation.",
        "为少步生成而训练。",
        level="expert",
        planned="few-step training (TwinFlow)",
    )
    twinflow_target_step_count: int = option(
        1, "Steps to aim at.", "目标步数。", ge=1, unit="steps", level="expert", planned="few-step training (TwinFlow)"
    )
    distillation_method: str | None = option(
        None, "Distillation from a teacher.", "教师蒸馏的方法。", level="expert", planned="distillation"
    )
    distillation_config: Any = option(
        None, "Settings of the distillation.", "蒸馏的设置。", level="expert", planned="distillation"
    )
