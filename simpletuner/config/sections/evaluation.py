"""Loss on clips that are never trained."""

from __future__ import annotations

from typing import Literal

from simpletuner.config.option import Section, option

EVALUATION = "evaluation loss"


class EvaluationSection(Section):
    eval_steps_interval: int | None = option(
        None, "Steps between evaluations.", "两次评估之间的步数。", ge=0, unit="steps", guide=True, planned=EVALUATION,
        neutral=(0,),
    )  # fmt: skip
    eval_epoch_interval: float | None = option(
        None, "Epochs between evaluations; 0.5 is twice per epoch.", "两次评估之间的轮数；0.5 表示每轮两次。", ge=0,
        unit="epochs", guide=True, planned=EVALUATION, neutral=(0,),
    )  # fmt: skip
    eval_timesteps: int = option(28, "Noise levels per evaluation.", "每次评估的噪声水平数。", ge=1, guide=True,
                                 planned=EVALUATION)  # fmt: skip
    num_eval_images: int = option(4, "Samples per evaluation.", "每次评估的样本数。", ge=1, planned=EVALUATION)
    eval_dataset_pooling: bool = option(
        False, "One curve for all evaluation sets.", "所有评估集合并为一条曲线。", level="advanced", planned=EVALUATION
    )
    eval_dataset_id: str | None = option(
        None, "Evaluate only this set.", "只评估该数据集。", level="advanced", planned=EVALUATION
    )
    eval_loss_disable: bool = option(
        False, "Keep evaluation sets but skip the loss.", "保留评估集但不计算损失。", level="expert", planned=EVALUATION
    )
    evaluation_type: Literal["none"] = option(
        "none", "Score of generated videos.", "对生成视频的评分。", guide=True,
        planned_values={"clip": "CLIP scoring, which is not recommended for video,"},
    )  # fmt: skip
    pretrained_evaluation_model_name_or_path: str | None = option(
        None, "Model that scores.", "评分模型。", level="expert", planned="scoring of generated videos"
    )
