"""From options to a trainable model: number formats, freezing, the optimizer's settings."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from simpletuner.config.catalogs.optimizers import OPTIMIZERS
from simpletuner.config.sections.optimizer import OptimizerSection
from simpletuner.config.sections.precision import PrecisionSection
from simpletuner.config.sections.schedule import ScheduleSection
from simpletuner.core.errors import UserError
from simpletuner.training.build import weight_dtype
from simpletuner.training.fit import fit
from simpletuner.training.state import build_optimizer


@pytest.mark.parametrize(("optimizer", "dtype"), [("adamw_bf16", torch.bfloat16), ("torch-adamw", torch.float32)])
def test_the_optimizer_decides_the_format_of_the_adapter(
    small_run: Callable[..., Any], optimizer: str, dtype: torch.dtype
) -> None:
    trainable = small_run(optimizer=optimizer).state.trainable
    assert {parameter.dtype for parameter in trainable.parameters.values()} == {dtype}
    assert all(parameter.requires_grad for parameter in trainable.parameters.values())
    assert trainable.trained_count < trainable.total_count
    assert trainable.dtype == torch.float32


@pytest.mark.parametrize("optimizer", ["adamw_bf16", "torch-adamw"])
def test_bytes_per_parameter_are_as_stated(small_run: Callable[..., Any], optimizer: str) -> None:
    run = small_run(optimizer=optimizer, total_steps=1)
    list(fit(run.state, run.objective, stop=lambda: False))
    trained = list(run.state.trainable.parameters.values())
    state = sum(
        part.numel() * part.element_size()
        for parts in run.state.optimizer.state.values()
        for part in parts.values()
        if isinstance(part, torch.Tensor) and part.dim() > 0
    )
    own = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    count = sum(parameter.numel() for parameter in trained)
    assert state == OPTIMIZERS[optimizer].state_bytes * count
    assert 2 * own + state == OPTIMIZERS[optimizer].bytes_per_parameter * count


def test_settings_reach_the_optimizer(small_run: Callable[..., Any]) -> None:
    config = SimpleNamespace(
        optimizer=OptimizerSection(
            optimizer="adamw_bf16", optimizer_beta2=0.95, adam_weight_decay=0.3, adam_epsilon=1e-5
        ),
        schedule=ScheduleSection(learning_rate=3e-4),
    )
    (group,) = build_optimizer(small_run(optimizer="adamw_bf16").state.trainable, config).param_groups
    found = {key: group[key] for key in ("lr", "betas", "eps", "weight_decay")}
    assert found == {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-5, "weight_decay": 0.3}


def test_plain_weights_are_the_base_model(small_run: Callable[..., Any]) -> None:
    run = small_run(total_steps=5)
    trainable = run.state.trainable
    batch = next(run.stream)

    def predict() -> torch.Tensor:
        with torch.no_grad():
            return trainable.family.predict(
                trainable.transformer, None, batch.latents, torch.full((1,), 0.5), batch.prompt_embeds,
                batch.prompt_mask, batch.frame_rates,
            )  # fmt: skip

    before = predict()
    list(fit(run.state, run.objective, stop=lambda: False))
    assert not torch.equal(predict(), before)
    with trainable.plain_weights():
        assert torch.equal(predict(), before)


@pytest.mark.parametrize(("name", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_weight_formats(name: str, dtype: torch.dtype) -> None:
    assert weight_dtype(PrecisionSection.model_construct(mixed_precision=name)) == dtype


@pytest.mark.parametrize("name", ["fp16", "fp8"])
def test_formats_that_cannot_be_trained_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=name):
        weight_dtype(PrecisionSection.model_construct(mixed_precision=name))
