"""Which noise levels are trained, and the loss."""

from __future__ import annotations

from typing import Any, Literal

from simpletuner.config.option import Section, option

BETA = "noise levels from a beta distribution"
REFINER = "training a slice of the noise levels"
NOT_FLOW = "it belongs to models that predict noise; LTX-Video is a flow-matching model"


class FlowSection(Section):
    flow_schedule_shift: float = option(
        1.0,
        "Multiply the odds of each noise level; above 1 favours noise, below 1 detail; 0 or 1 changes nothing.",
        "按倍数改变噪声水平的几率；大于 1 偏向噪声（构图），小于 1 偏向细节；0 或 1 不作改变。",
        ge=0,
        guide=True,
    )
    flow_schedule_auto_shift: bool = option(
        False,
        "Shift by the number of tokens of the clip.",
        "按视频的 token 数自动偏移。",
        guide=True,
        excludes=("flow_schedule_shift",),
    )
    flow_sigmoid_scale: float = option(
        1.0, "Width of the logit-normal bell.", "logit-normal 钟形分布的宽度。", gt=0, level="advanced"
    )
    flow_use_uniform_schedule: bool = option(False, "Draw noise levels uniformly.", "均匀抽取噪声水平。")
    flow_use_beta_schedule: bool = option(
        False, "Draw noise levels from a beta distribution.",
        "从 beta 分布抽取噪声水平。", level="advanced", planned=BETA,
        excludes=("flow_use_uniform_schedule",),
    )  # fmt: skip
    flow_beta_schedule_alpha: float = option(2.0, "Alpha of that distribution.",
                                             "该分布的 alpha。", gt=0, level="expert",
                                             planned=BETA)  # fmt: skip
    flow_beta_schedule_beta: float = option(2.0, "Beta of that distribution.", "该分布的 beta。", gt=0, level="expert",
                                            planned=BETA)  # fmt: skip
    flow_cubic_schedule_weights: Any = option(
        None, "Density of noise levels as equally spaced weights.", "以等距权重给出的噪声水平密度。", level="expert",
        planned="a free density of noise levels",
    )  # fmt: skip
    flow_custom_timesteps: Any = option(
        None,
        "Fixed list of noise levels.",
        "固定的噪声水平列表。",
        level="expert",
        planned="a fixed list of noise levels",
    )
    flow_timesteps_mode: Literal["fixed-list", "round-robin"] = option(
        "fixed-list",
        "How that list is used.",
        "该列表的使用方式。",
        level="expert",
        planned="a fixed list of noise levels",
    )
    loss_type: Literal["l2"] = option(
        "l2", "Pointwise loss.", "逐点损失。",
        planned_values={"huber": "Huber loss", "smooth_l1": "smooth L1 loss"},
    )  # fmt: skip
    huber_schedule: Literal["snr", "exponential", "constant"] = option(
        "snr",
        "How Huber's threshold follows the noise.",
        "Huber 阈值随噪声的变化方式。",
        level="expert",
        planned="Huber loss",
    )
    huber_c: float = option(0.1, "Huber's threshold.", "Huber 阈值。", gt=0, level="expert", planned="Huber loss")
    input_perturbation: float = option(
        0.0,
        "Extra noise on the model's input.",
        "模型输入的额外噪声。",
        ge=0,
        level="expert",
        planned="extra input noise",
    )
    input_perturbation_steps: int = option(
        0, "Steps over which that noise fades.", "额外噪声衰减的步数。", ge=0, unit="steps", level="expert",
        planned="extra input noise",
    )  # fmt: skip
    refiner_training: bool = option(
        False, "Train only a slice of the noise levels.", "只训练一段噪声水平。", level="expert", planned=REFINER
    )
    refiner_training_invert_schedule: bool = option(
        False, "Train the other slice.", "训练另一段噪声水平。", level="expert", planned=REFINER
    )
    refiner_training_strength: float = option(
        0.2, "Size of the slice.", "该段的大小。", ge=0, le=1, level="expert", planned=REFINER
    )
    mixflow_enabled: bool = option(
        False, "Slowed-interpolation post-training.", "减速插值后训练（MixFlow）。", level="expert", planned="MixFlow"
    )
    mixflow_gamma: float = option(
        0.8, "Strength of that slowing.", "减速强度。", ge=0, level="expert", planned="MixFlow"
    )
    masked_loss_probability: float = option(
        1.0, "Chance that a mask weights the loss.", "损失使用遮罩的概率。", ge=0, le=1, level="expert", neutral=(0,),
        refused="masked loss must not be used with LTX-Video",
    )  # fmt: skip
    prediction_type: str | None = option(
        None,
        "What the model predicts.",
        "模型的预测类型。",
        level="expert",
        refused=NOT_FLOW,
        neutral=("flow_matching",),
    )
    snr_gamma: float | None = option(
        None, "Weight of noise levels.", "噪声水平的权重。", ge=0, level="expert", refused=NOT_FLOW, neutral=(0,)
    )
    snr_weight: float | None = option(
        None, "Weight of noise levels.", "噪声水平的权重。", ge=0, level="expert", refused=NOT_FLOW, neutral=(0, 1)
    )
    use_soft_min_snr: bool = option(
        False, "Softened weight of noise levels.", "软化的噪声水平权重。", level="expert", refused=NOT_FLOW
    )
    rescale_betas_zero_snr: bool = option(
        False, "Rescale the noise schedule.", "重新缩放噪声计划。", level="expert", refused=NOT_FLOW
    )
    offset_noise: bool = option(False, "Add a common offset to the noise.", "为噪声加公共偏移。", level="expert",
                                refused=NOT_FLOW)  # fmt: skip
    noise_offset: float = option(0.0, "Size of that offset.", "偏移大小。", ge=0, level="expert", refused=NOT_FLOW)
    disable_segmented_timestep_sampling: bool = option(
        False, "Do not spread time steps over a batch.", "不在批次内分散时间步。", level="expert", refused=NOT_FLOW
    )
    timestep_bias_strategy: Literal["none", "earlier", "later", "range"] = option(
        "none", "Bias of time steps.", "时间步偏向。", level="expert", refused=NOT_FLOW
    )
    training_scheduler_timestep_spacing: str | None = option(
        None, "Spacing of time steps.", "时间步间距。", level="expert", refused=NOT_FLOW
    )
    fuse_qkv_projections: bool = option(
        False, "Fuse the attention's projections.", "融合注意力投影。", level="expert",
        refused="LTX-Video's attention keeps its projections apart",
    )  # fmt: skip
