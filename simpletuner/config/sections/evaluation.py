"""Loss on clips that are never trained."""

from __future__ import annotations

from typing import Literal

from simpletuner.config.option import Section, option

NO_CLIP = "CLIP compares single pictures with words and says little about a video; the evaluation loss is the measure"


class EvaluationSection(Section):
    eval_steps_interval: int | None = option(
        None,
        "Steps between measurements of the loss on data sets of `dataset_type` eval. With such sets it is also "
        "measured before the first step and after the last one.",
        "每隔多少步在 `dataset_type` 为 eval 的数据集上测量损失。有此类数据集时，第一步之前与最后一步之后也会测量。",
        ge=0,
        unit="steps",
        guide=True,
    )
    eval_epoch_interval: float | None = option(
        None,
        "Epochs between measurements; 0.5 is twice per epoch. With both intervals both hold.",
        "两次测量之间的轮数；0.5 表示每轮两次。两种间隔同时给出时都生效。",
        ge=0,
        unit="epochs",
        guide=True,
    )
    eval_timesteps: int = option(
        28,
        "Noise levels at which each clip is measured; always the same ones, spread evenly.",
        "测量每个视频所用的噪声水平数；每次相同，均匀分布。",
        ge=1,
        le=1000,
        guide=True,
    )
    num_eval_images: int = option(
        4,
        "Clips measured of each evaluation set; the same ones each time.",
        "每个评估集参与测量的视频数；每次相同。",
        ge=1,
    )
    eval_dataset_pooling: bool = option(
        False,
        "One curve over the clips of all evaluation sets instead of one per set.",
        "所有评估集的视频合并为一条曲线，而不是每个评估集一条。",
        level="advanced",
    )
    eval_dataset_id: str | None = option(
        None, "Measure only this evaluation set.", "只测量该评估集。", level="advanced"
    )
    eval_loss_disable: bool = option(
        False, "Keep evaluation sets but do not measure the loss.", "保留评估集但不测量损失。", level="expert"
    )
    eval_early_stop_patience: int = option(
        0,
        "Stop after so many measurements in a row without a lower loss; 0 never stops. The weights of the lowest loss "
        "are kept in `best/` either way.",
        "连续这么多次测量未见更低损失后停止训练；0 表示从不。无论如何，损失最低的权重都会保存在 `best/` 中。",
        ge=0,
        level="advanced",
    )
    eval_early_stop_min_delta: float = option(
        0.0,
        "How much lower the loss must be to count as lower for `eval_early_stop_patience`.",
        "对 `eval_early_stop_patience` 而言，损失至少要降低多少才算更低。",
        ge=0,
        level="expert",
    )
    evaluation_type: Literal["none"] = option(
        "none",
        "Score of generated videos.",
        "对生成视频的评分。",
        guide=True,
        refused_values={"clip": NO_CLIP},
    )
    pretrained_evaluation_model_name_or_path: str | None = option(
        None, "Model that scores.", "评分模型。", level="expert", refused=NO_CLIP
    )
