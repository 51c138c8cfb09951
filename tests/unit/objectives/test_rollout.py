"""Scheduled sampling: on the true path with a true model, itself with an offset of 0, every option with an effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simpletuner.config.sections.flow import FlowSection
from simpletuner.config.sections.guidance import RolloutSection
from simpletuner.data.batch import Batch
from simpletuner.data.sample import BucketKey
from simpletuner.maths.noising import noise_latents
from simpletuner.objectives.auxiliary import Drawn, Seen
from simpletuner.objectives.flow_matching import FlowMatching
from simpletuner.objectives.rollout import Rollout
from simpletuner.runtime.random import draw_normal

SHAPE = (4, 3, 2, 2)
GRID = torch.linspace(1, 0, 41)
ALWAYS = {"scheduled_sampling_max_step_offset": 5, "scheduled_sampling_probability": 1.0,
          "scheduled_sampling_sampler": "euler"}  # fmt: skip


def make_batch(count: int = 6, is_i2v: bool = False) -> Batch:
    numbers = tuple(range(count))
    return Batch(
        latents=draw_normal(SHAPE, 3, "latents", numbers), prompt_embeds=torch.zeros(count, 1, 1),
        prompt_mask=torch.ones(count, 1, dtype=torch.bool), frame_rates=torch.full((count,), 25.0),
        bucket=BucketKey(64, 64, 17), sample_numbers=numbers, sample_names=tuple(map(str, numbers)),
        captions=("",) * count, share=1.0, ends_step=True, epoch=1, is_i2v=(is_i2v,) * count,
    )  # fmt: skip


def flow(**settings: Any) -> FlowMatching:
    return FlowMatching(None, None, FlowSection(**settings), 5)  # type: ignore[arg-type]


def rollout(model: nn.Module | None = None, **settings: Any) -> Rollout:
    return Rollout(RolloutSection(**{**ALWAYS, **settings}), model or nn.Identity(), lambda size: GRID, 5)


class Answers:
    """What a model would say, and what it was asked."""

    def __init__(self, speed: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.speed = speed
        self.asked: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def __call__(self, noised: Tensor, sigmas: Tensor, first: Tensor | None) -> Tensor:
        assert not torch.is_grad_enabled()
        self.asked.append((noised, sigmas, first))
        return self.speed(noised, sigmas)


def true_speed(drawn: Drawn) -> Answers:
    return Answers(lambda noised, sigmas: drawn.noise - drawn.latents)


def curved(noised: Tensor, sigmas: Tensor) -> Tensor:
    return torch.sin(3 * noised) - sigmas[:, None, None, None, None] * noised


@pytest.mark.parametrize(("sampler", "order"), [("euler", 2), ("dpm", 1), ("dpm", 2), ("unipc", 2)])
def test_trap_85_a_true_model_stays_on_the_path(sampler: str, order: int) -> None:
    drawn = flow().draw(make_batch(), 1)
    one = rollout(scheduled_sampling_sampler=sampler, scheduled_sampling_order=order,
                  scheduled_sampling_reflexflow=False)  # fmt: skip
    arrived = one.prepare(true_speed(drawn), make_batch(), drawn, 1)
    assert torch.allclose(arrived.noised, drawn.noised, atol=1e-5)
    assert torch.equal(arrived.target, drawn.target)


def test_trap_86_nothing_carries_a_gradient_and_dropout_is_off() -> None:
    model = nn.Sequential(nn.Dropout(0.5))
    model.train()
    seen = []

    def predict(noised: Tensor, sigmas: Tensor, first: Tensor | None) -> Tensor:
        seen.append(model[0].training)
        return model(curved(noised, sigmas))

    drawn = flow().draw(make_batch(), 1)
    first = rollout(model).prepare(predict, make_batch(), drawn, 1)
    second = rollout(model).prepare(predict, make_batch(), drawn, 1)
    assert seen
    assert not any(seen)
    assert model[0].training
    assert not first.noised.requires_grad
    assert torch.equal(first.noised, second.noised)
    assert not torch.allclose(first.noised, drawn.noised, atol=1e-3)


def test_an_offset_of_0_is_plain_training() -> None:
    drawn = flow().draw(make_batch(), 1)
    answers = Answers(curved)
    # biased_early with the smallest offset rounds most draws to 0: take a batch where all are.
    for number in range(200):
        batch = replace(make_batch(1), sample_numbers=(number,))
        drawn = flow().draw(batch, 1)
        one = rollout(scheduled_sampling_strategy="biased_early", scheduled_sampling_max_step_offset=1)
        prepared = one.prepare(answers, batch, drawn, 1)
        if prepared is drawn:
            assert [term.name for term in one.terms(seen_of(batch, drawn))] == ["rollout/forwards"]
            return
    pytest.fail("no draw of 0 among 200")


def seen_of(batch: Batch, drawn: Drawn) -> Seen:
    return Seen(batch, drawn, torch.zeros_like(drawn.latents).requires_grad_(), {}, 1)


def test_what_a_sample_is_given_depends_on_it_alone() -> None:
    """Another batch around it, and its path is the same; so accumulation and resuming change nothing."""
    whole = make_batch(6)
    drawn = flow().draw(whole, 1)
    together = rollout(scheduled_sampling_reflexflow=False).prepare(Answers(curved), whole, drawn, 1)
    for number in range(6):
        alone = replace(
            make_batch(6), latents=whole.latents[number : number + 1], prompt_embeds=whole.prompt_embeds[:1],
            prompt_mask=whole.prompt_mask[:1], frame_rates=whole.frame_rates[:1], sample_numbers=(number,),
        )  # fmt: skip
        single = rollout(scheduled_sampling_reflexflow=False).prepare(Answers(curved), alone, flow().draw(alone, 1), 1)
        assert torch.allclose(single.noised[0], together.noised[number], atol=1e-6), number


def test_the_walk_asks_on_the_inference_grid_and_ends_at_the_samples_level() -> None:
    batch = make_batch(1)
    for number in range(20):
        batch = replace(batch, sample_numbers=(number,))
        drawn, answers = flow().draw(batch, 1), Answers(curved)
        rollout(scheduled_sampling_reflexflow=False).prepare(answers, batch, drawn, 1)
        levels = [float(sigmas) for _, sigmas, _ in answers.asked]
        assert levels == sorted(levels, reverse=True)
        assert all(min(abs(level - GRID)) < 1e-6 and level > drawn.sigmas for level in levels)
        assert len(levels) <= 5
        # A neighbour of the grid comes last: the last step goes down to the sample's own level.
        if levels:
            assert levels[-1] - float(drawn.sigmas) <= 1 / 40 + 1e-6


def test_the_chance_leaves_samples_alone() -> None:
    batch = make_batch(64)
    drawn = flow().draw(batch, 1)
    half = rollout(scheduled_sampling_probability=0.5, scheduled_sampling_reflexflow=False)
    changed = (half.prepare(Answers(curved), batch, drawn, 1).noised != drawn.noised).flatten(1).any(1)
    assert 15 < changed.sum() < 45
    assert not rollout(scheduled_sampling_probability=0.0).is_active(1)
    ramp = rollout(scheduled_sampling_ramp_steps=10, scheduled_sampling_start_step=5)
    assert [ramp.is_active(step) for step in (1, 5, 6)] == [False, False, True]
    assert ramp.chance(10) == pytest.approx(0.25)


def test_trap_87_both_targets_are_what_they_say() -> None:
    batch = make_batch()
    drawn = flow().draw(batch, 1)
    reached = rollout(scheduled_sampling_target="reached", scheduled_sampling_reflexflow=False)
    arrived = reached.prepare(Answers(curved), batch, drawn, 1)
    moved = (arrived.noised != drawn.noised).flatten(1).any(1)
    assert moved.any()
    assert not moved.all()
    # From where it is, its velocity leads straight to the clip.
    back = arrived.noised - arrived.sigmas[:, None, None, None, None] * arrived.target
    assert torch.allclose(back[moved], drawn.latents[moved], atol=1e-5)
    assert torch.equal(arrived.target[~moved], drawn.target[~moved])


@pytest.mark.parametrize("protect", [True, False])
def test_a_given_first_frame_stays_what_it_is(protect: bool) -> None:
    batch = make_batch(is_i2v=True)
    drawn = flow(ltx_i2v_prob=0.5, ltx_protect_first_frame=protect, ltx_partial_noise_fraction=0.5).draw(batch, 1)
    assert drawn.given is not None
    given = drawn.given.sigmas < drawn.sigmas
    assert given.any()
    assert not given.all()
    answers = Answers(curved)
    arrived = rollout(scheduled_sampling_reflexflow=False).prepare(answers, batch, drawn, 1)
    assert torch.equal(arrived.noised[given][:, :, 0], drawn.noised[given][:, :, 0])
    for noised, sigmas, first in answers.asked:
        assert first is not None
        assert torch.equal(noised[given][:, :, 0], drawn.noised[given][:, :, 0])
        assert torch.equal(first[given], drawn.given.sigmas[given])
        assert torch.equal(first[~given], sigmas[~given])


def test_reflexflow_weighs_what_changed_and_pulls_back() -> None:
    batch = make_batch()
    drawn = flow().draw(batch, 1)
    settings = {"scheduled_sampling_reflexflow_alpha": 0.5, "scheduled_sampling_reflexflow_beta2": 2.0}
    one = rollout(**settings)
    answers = Answers(curved)
    prepared = one.prepare(answers, batch, drawn, 1)
    clean = curved(drawn.noised, drawn.device_sigmas)
    rolled = (prepared.noised != drawn.noised).flatten(1).any(1)
    prediction = curved(prepared.noised, prepared.device_sigmas).requires_grad_()
    assert prepared.weigh is not None
    weights = prepared.weigh(prediction)
    bias = (clean - prediction.detach()).abs()
    expected = 2.0 * (1 + 0.5 * bias / bias.flatten(1).mean(1)[:, None, None, None, None])
    assert torch.allclose(weights[rolled], expected[rolled], atol=1e-5)
    assert torch.equal(weights[~rolled], torch.ones_like(weights[~rolled]))
    drift, told = one.terms(Seen(batch, prepared, prediction, {}, 1))
    assert (drift.name, drift.weight) == ("rollout/drift", 20.0)
    ways = [values.flatten(1) / values.flatten(1).norm(dim=1, keepdim=True)
            for values in (prediction, prepared.noised - drawn.latents)]  # fmt: skip
    distances = (ways[0] - ways[1]).square().sum(1)
    assert drift.value.item() == pytest.approx((distances * rolled).mean().item(), abs=1e-5)
    assert told.value.item() == len(answers.asked)
    loss = flow().judge(prepared, prediction)[0]
    plain = (prediction - prepared.target).square()
    assert loss.value.item() == pytest.approx((plain * weights).flatten(1).mean(1).mean().item(), rel=1e-5)


def test_source_of_the_roll_out_has_the_samples_own_noise() -> None:
    batch = make_batch(1)
    drawn, answers = flow().draw(batch, 1), Answers(curved)
    rollout(scheduled_sampling_reflexflow=False).prepare(answers, batch, drawn, 1)
    noised, sigmas, _ = answers.asked[0]
    assert torch.allclose(noised, noise_latents(drawn.latents, drawn.noise, sigmas))
