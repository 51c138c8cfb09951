"""Which noise levels are trained, what of a clip is given, and the loss."""

from __future__ import annotations

from typing import Literal

from simpletuner.config.option import Section, option

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
        "从 beta 分布抽取噪声水平。", level="advanced",
        excludes=("flow_use_uniform_schedule",),
    )  # fmt: skip
    flow_beta_schedule_alpha: float = option(
        2.0, "Alpha of that distribution.", "该分布的 alpha。", gt=0, le=100, level="expert"
    )
    flow_beta_schedule_beta: float = option(
        2.0, "Beta of that distribution.", "该分布的 beta。", gt=0, le=100, level="expert"
    )
    flow_cubic_schedule_weights: tuple[float, ...] | None = option(
        None,
        "Density of noise levels: weights of at least 0 at equal steps from no noise to pure noise, joined by a curve.",
        "噪声水平的密度：从无噪声到纯噪声等距给出的非负权重，以曲线连接。",
        level="expert",
        excludes=("flow_use_uniform_schedule", "flow_use_beta_schedule"),
    )
    flow_custom_timesteps: tuple[float, ...] | None = option(
        None,
        "Train only these noise levels, unshifted: shares if all are at most 1, else time steps up to 1000.",
        "只训练这些噪声水平（不偏移）：全部不大于 1 时为比例，否则为 0–1000 的时间步。",
        level="expert",
        excludes=(
            "flow_use_uniform_schedule", "flow_use_beta_schedule", "flow_cubic_schedule_weights",
            "flow_schedule_auto_shift", "refiner_training",
        ),
    )  # fmt: skip
    flow_timesteps_mode: Literal["fixed-list", "round-robin"] = option(
        "fixed-list",
        "How that list is used: drawn at random, or one after the other.",
        "该列表的使用方式：随机抽取，或依次使用。",
        level="expert",
    )
    flow_sigma_sampling: Literal["independent", "stratified", "antithetic"] = option(
        "independent",
        "How noise levels follow each other: `stratified` spreads every 64 draws evenly over the distribution, "
        "`antithetic` mirrors every second draw; both make the loss less noisy and train the same distribution.",
        "噪声水平的抽取方式：`stratified` 使每 64 次抽取均匀覆盖分布，`antithetic` 每隔一次取镜像；"
        "两者都降低损失的波动，训练的分布不变。",
        level="advanced",
        excludes=("flow_custom_timesteps",),
    )
    loss_type: Literal["l2", "huber", "smooth_l1"] = option(
        "l2",
        "Pointwise loss; the two others count large errors less.",
        "逐点损失；后两者降低大误差的权重。",
        level="advanced",
    )
    huber_schedule: Literal["snr", "exponential", "constant"] = option(
        "snr",
        "How the threshold of `huber` and `smooth_l1` falls from 1 at no noise to `huber_c` at pure noise.",
        "`huber` 与 `smooth_l1` 的阈值如何从无噪声时的 1 降到纯噪声时的 `huber_c`。",
        level="expert",
    )
    huber_c: float = option(0.1, "That threshold at pure noise.", "纯噪声时的阈值。", gt=0, le=1, level="expert")
    input_perturbation: float = option(
        0.0,
        "Extra noise on the model's input, as a share of its noise; what it must predict stays.",
        "模型输入的额外噪声（相对其噪声的比例），预测目标不变。",
        ge=0,
        le=1,
        level="expert",
    )
    input_perturbation_steps: int = option(
        0, "Steps over which that noise fades to nothing; 0 keeps it.", "额外噪声衰减到零的步数；0 表示保持。",
        ge=0, unit="steps", level="expert",
    )  # fmt: skip
    refiner_training: bool = option(
        False, "Train only the low noise levels, up to `refiner_training_strength`.",
        "只训练低噪声水平，至 `refiner_training_strength` 为止。", level="expert",
    )  # fmt: skip
    refiner_training_invert_schedule: bool = option(
        False, "Train the high noise levels above it instead.", "改为训练其上的高噪声水平。", level="expert"
    )
    refiner_training_strength: float = option(
        0.2, "Noise level that divides the two.", "划分两者的噪声水平。", gt=0, lt=1, level="expert"
    )
    ltx_train_mode: Literal["t2v", "i2v"] = option(
        "t2v",
        "What a set of clips trains when it has no `is_i2v`: text-to-video, or image-to-video beside it.",
        "未写 `is_i2v` 的视频数据集训练什么：文生视频，或同时训练图生视频。",
        level="advanced",
    )
    ltx_i2v_prob: float = option(
        0.1,
        "Chance that a sample of a set with `is_i2v` is given its first frame; 0 trains text-to-video only.",
        "`is_i2v` 数据集的样本获得首帧的概率；0 表示只训练文生视频。",
        ge=0,
        le=1,
        level="advanced",
    )
    ltx_protect_first_frame: bool = option(
        False,
        "A first frame that is given is clean and not part of the loss, as at generation from an image; else it "
        "only has a little less noise.",
        "给出的首帧完全无噪声且不计入损失（与由图像生成时相同）；否则只是噪声稍少。",
        level="advanced",
    )
    ltx_partial_noise_fraction: float = option(
        0.05,
        "Largest share of its noise that such a first frame lacks while it is not protected.",
        "首帧未受保护时最多减少的噪声比例。",
        ge=0,
        le=1,
        level="expert",
    )
    mixflow_enabled: bool = option(
        False, "Slowed-interpolation post-training.", "减速插值后训练（MixFlow）。", level="expert", planned="MixFlow"
    )
    mixflow_gamma: float = option(
        0.8, "Strength of that slowing.", "减速强度。", ge=0, level="expert", planned="MixFlow"
    )
    masked_loss_probability: float = option(
        1.0, "Chance that a mask weights the loss.", "损失使用遮罩的概率。", ge=0, le=1, level="expert", neutral=(0,),
        refused="masked loss must not be used with LTX-Video: one latent cell stands for 32 x 32 pixels of 8 frames, "
        "which no mask of pixels divides, and all cells see each other",
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
