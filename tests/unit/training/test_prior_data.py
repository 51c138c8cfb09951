"""Prior data: the base model's own answer is the target, so that the adapter leaves such clips alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from simpletuner.config.lycoris_file import LycorisFile
from simpletuner.training.checkpoint import restore, save_checkpoint
from simpletuner.training.fit import fit

LOKR = LycorisFile(algo="lokr", multiplier=1.0, linear_alpha=1, full_matrix=True, factor=4)
PRIOR = (4, 5, 6, 7)


def train(run: Any, until: int = 1_000) -> list[Any]:
    return list(fit(run.state, run.objective, stop=lambda: run.state.step >= until))


def change(run: Any, numbers: tuple[int, ...]) -> float:
    """How far the adapter moves the model's answer on clips, mean square."""
    batches = [batch for batch in (next(run.stream) for _ in range(24)) if int(batch.captions[0][1:] or 9) in numbers]
    flow, total = getattr(run.objective, "_flow", run.objective), 0.0
    transformer = run.state.trainable.transformer.eval()
    with torch.no_grad():
        for batch in batches:
            drawn = flow.draw(batch, 1)
            asked = (transformer, batch, drawn.noised, drawn.device_sigmas, None)
            with run.state.trainable.plain_weights():
                plain = flow.predict(*asked)
            total += float((flow.predict(*asked) - plain).square().mean())
    assert batches
    return total / len(batches)


@pytest.mark.parametrize("lycoris", [None, LOKR], ids=["lora", "lokr"])
def test_a_fresh_adapter_has_nothing_to_mend(small_run: Callable[..., Any], lycoris: Any) -> None:
    run = small_run(batch_size=2, total_steps=4, prior=range(8), lycoris=lycoris)
    for event in train(run):
        assert event.loss == event.terms["regularisation_loss"] == event.gradient_norm == 0.0


def test_clips_of_one_batch_have_targets_of_their_own(small_run: Callable[..., Any]) -> None:
    run, plain = small_run(batch_size=8, prior=PRIOR), small_run(batch_size=8)
    batch = next(run.stream)
    (term, part), (other,) = (one.objective(one.state.trainable.transformer, batch, 1) for one in (run, plain))
    is_prior = torch.tensor(batch.is_prior)
    assert 0 < is_prior.sum() < 8
    assert term.per_sample[is_prior].tolist() == [0.0] * int(is_prior.sum())
    assert torch.equal(term.per_sample[~is_prior], other.per_sample[~is_prior])
    assert (part.name, part.is_reported_only, float(part.value)) == ("regularisation_loss", True, 0.0)


def test_the_adapter_leaves_such_clips_alone(small_run: Callable[..., Any]) -> None:
    with_prior, without = small_run(total_steps=80, prior=PRIOR), small_run(total_steps=40, samples=4)
    for run in (with_prior, without):
        train(run)
        run.stream = small_run().stream
    assert change(with_prior, PRIOR) < 0.75 * change(without, PRIOR)


def test_a_resumed_run_is_the_straight_one(small_run: Callable[..., Any], tmp_path: Path) -> None:
    straight, first, second = (small_run(total_steps=6, batch_size=2, prior=PRIOR) for _ in range(3))
    train(straight)
    train(first, until=3)
    assert restore(second.state, save_checkpoint(first.state, tmp_path, facts=first.facts), second.facts) == ()
    train(second)
    expected = straight.adapter()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in second.adapter().items())
