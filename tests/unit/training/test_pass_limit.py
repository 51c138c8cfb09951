"""A batch computed in parts is the same step in less memory, whoever asked for the parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from simpletuner.training.fit import fit_on
from simpletuner.training.out_of_memory import DoesNotFitError
from tests.unit.training.test_out_of_memory import Exhausted

CELLS = 2 * 2 * 3  # of each clip of the small run


def train(run: Any, objective: Any = None) -> tuple[list[float], list[str]]:
    told: list[str] = []
    return [e.loss for e in fit_on(run.state, objective or run.objective, stop=lambda: False, tell=told.append)], told


def assert_alike(one: Any, other: Any) -> None:
    for name, tensor in one.adapter().items():
        torch.testing.assert_close(tensor, other.adapter()[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("limit", "sizes"), [(None, [4]), (4 * CELLS, [4]), (3 * CELLS, [2, 2]), (1, [1, 1, 1, 1])])
def test_parts_of_a_batch(small_run: Callable[..., Any], limit: int | None, sizes: list[int]) -> None:
    run = small_run(batch_size=4, accumulation=2)
    passes = run.state.trainable.passes
    passes.tokens = limit
    for _ in range(2):
        batch = next(run.stream)
        parts = passes.parts(batch)
        assert [len(part.sample_numbers) for part in parts] == sizes
        assert sum(part.share for part in parts) == pytest.approx(batch.share)
        for name in ("latents", "prompt_embeds", "prompt_mask", "frame_rates"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
        for name in ("sample_numbers", "sample_names", "captions", "is_i2v"):
            assert sum((getattr(part, name) for part in parts), ()) == getattr(batch, name)


@pytest.mark.parametrize("clips", [1, 2, 3])
def test_in_parts_it_is_the_same_training(small_run: Callable[..., Any], clips: int) -> None:
    # Five samples leave a smaller batch at the end of each epoch.
    whole, parts = (small_run(batch_size=4, samples=5, accumulation=2, total_steps=6) for _ in range(2))
    parts.state.trainable.passes.tokens = clips * CELLS
    losses, found = train(whole)[0], train(parts)[0]
    assert found == pytest.approx(losses, rel=1e-5)
    assert_alike(parts, whole)


@pytest.mark.parametrize("optimizer", ["torch-adamw", "adamw_bf16"])
def test_where_all_is_recomputed_the_batch_is_halved(small_run: Callable[..., Any], optimizer: str) -> None:
    settings = {"batch_size": 4, "total_steps": 4, "checkpointing": True, "optimizer": optimizer}
    plain, short = small_run(**settings), small_run(**settings)
    # The second step fails whole and in halves (its 2nd, 3rd and 4th pass), and goes clip by clip.
    losses, (found, told) = train(plain)[0], train(short, Exhausted(short.objective, {2, 4}, "backward"))
    assert [line.partition("from here on ")[2] for line in told] == [
        f"batches are computed in parts of at most {cells} latent cells, and the step is repeated"
        for cells in (2 * CELLS, CELLS)
    ]
    assert short.state.trainable.passes.tokens == CELLS
    # Narrow parameters add up beside themselves from then on.
    assert (short.state.sums is not None) == (optimizer == "adamw_bf16")
    if optimizer == "torch-adamw":
        assert found == pytest.approx(losses, rel=1e-5)
        assert_alike(short, plain)


def test_a_clip_alone_that_does_not_fit_ends_it(small_run: Callable[..., Any]) -> None:
    run = small_run(batch_size=2, checkpointing=True)
    with pytest.raises(DoesNotFitError, match="step 1 does not fit into memory"):
        train(run, Exhausted(run.objective, {1, 2}, "forward"))
    assert run.state.step == 0


def test_weights_that_move_in_the_backward_pass_keep_batches_whole(small_run: Callable[..., Any]) -> None:
    run = small_run(
        batch_size=2, checkpointing=True, optimizer="optimi-adamw",
        updates={"optimizer_release_gradients": True, "max_grad_norm": 0.0},
    )  # fmt: skip
    run.state.trainable.passes.parts(next(run.stream))
    assert not run.state.trainable.passes.turn_down()


def test_the_batch_told_is_the_whole_one(small_run: Callable[..., Any]) -> None:
    run = small_run(batch_size=3, samples=6, total_steps=2)
    run.state.trainable.passes.tokens = CELLS
    assert [event.samples for event in fit_on(run.state, run.objective, stop=lambda: False)] == [3, 3]
