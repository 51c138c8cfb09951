"""Two processes that each train their share of a step are one process with twice the accumulation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from simpletuner.data.batches import BatchStream
from simpletuner.maths.clipping import clip_gradients
from simpletuner.training.fit import fit
from simpletuner.training.readout import StepNumbers
from simpletuner.training.step import run_micro_step

PROCESSES = 2


def shards_of(stream: BatchStream, seed: int) -> list[BatchStream]:
    """The streams of all processes over the samples of one."""
    rules = replace(stream._rules, processes=PROCESSES)
    return [
        BatchStream(
            stream._samples, stream._read_latents, stream._read_prompt, rules, seed=seed, caption_dropout=0.2,
            prefetch=0, process_index=index,
        )
        for index in range(PROCESSES)
    ]  # fmt: skip


def gradients_of(run: Any, shard: BatchStream, rate: float) -> tuple[float, list[torch.Tensor]]:
    """What one process has after its part of a step: its part of the loss, and its gradients."""
    numbers, loss, ends_step = StepNumbers(run.state.step + 1, rate), 0.0, False
    while not ends_step:
        batch = next(shard)
        run_micro_step(run.state, run.objective, batch, numbers)
        loss += batch.share * numbers.scalars[-2].item()
        ends_step = batch.ends_step
    gradients = [parameter.grad for parameter in run.state.trainable.parameters.values()]
    run.state.optimizer.zero_grad(set_to_none=True)
    return loss, gradients


@pytest.mark.parametrize("samples", [8, 7])
def test_two_processes_train_like_one(small_run: Callable[..., Any], samples: int) -> None:
    # With 7 samples the last step of an epoch is smaller, and unevenly divided.
    settings = {"samples": samples, "batch_size": 1, "total_steps": 8}
    whole = small_run(accumulation=2 * PROCESSES, **settings)
    split = small_run(accumulation=2, **settings)
    expected = [event.loss for event in fit(whole.state, whole.objective, stop=lambda: False)]
    shards, losses = shards_of(split.stream, split.state.seed), []
    for step in range(8):
        rate = split.state.learning_rate(step)
        parts = [gradients_of(split, shard, rate) for shard in shards]
        losses.append(sum(loss for loss, _ in parts))
        # Shares of a step sum to 1 over all processes, so that gradients are added (or averaged, times their number).
        total = [torch.stack(held).sum(dim=0) for held in zip(*(gradients for _, gradients in parts), strict=True)]
        clip_gradients(total, split.state.settings.max_grad_norm, "norm")
        for parameter, gradient in zip(split.state.trainable.parameters.values(), total, strict=True):
            parameter.grad = gradient
        for group in split.state.optimizer.param_groups:
            group["lr"] = rate
        split.state.optimizer.step()
        split.state.optimizer.zero_grad(set_to_none=True)
        split.state.step += 1
    differences = torch.tensor(losses, dtype=torch.float64) - torch.tensor(expected, dtype=torch.float64)
    assert differences.abs().max() < 1e-5  # sums in another order
    assert differences.mean().abs() < 2e-6
    for name, tensor in whole.adapter().items():
        assert (tensor - split.adapter()[name]).abs().max() < 1e-5, name
