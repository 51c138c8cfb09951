"""The objective: an oracle has no loss, draws depend on the sample alone, options have their effect."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simpletuner.config.sections.flow import FlowSection
from simpletuner.data.batch import Batch
from simpletuner.data.sample import BucketKey
from simpletuner.objectives.flow_matching import NOISE_STREAM, FlowMatching, draw_noise
from simpletuner.objectives.terms import band_means
from simpletuner.runtime.random import draw_normal

SHAPE = (8, 3, 4, 5)


class Oracle:
    """Knows each batch's latents and answers with the true velocity, computed from what it is shown."""

    def __init__(self, latents: Tensor, error: float = 0.0) -> None:
        self.latents, self.error = latents, error
        self.seen: list[tuple[Tensor, Tensor]] = []

    def predict(
        self, transformer: nn.Module, source: Any, noised_latents: Tensor, sigmas: Tensor, *conditions: Tensor,
        first_frame_sigmas: Tensor | None = None,
        cell_sigmas: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        assert first_frame_sigmas is None
        self.seen.append((noised_latents, sigmas))
        share = sigmas.reshape(-1, 1, 1, 1, 1)
        # x = (1 - s) z + s e  ->  e - z = (x - z) / s
        return (noised_latents - self.latents) / share + self.error


def make_batch(numbers: tuple[int, ...], shape: tuple[int, ...] = SHAPE) -> Batch:
    count = len(numbers)
    return Batch(
        latents=draw_normal(shape, 3, "latents", numbers),
        prompt_embeds=torch.zeros(count, 6, 12),
        prompt_mask=torch.ones(count, 6, dtype=torch.bool),
        frame_rates=torch.full((count,), 25.0),
        bucket=BucketKey(160, 128, 17),
        sample_numbers=numbers,
        sample_names=tuple(f"d/{number}.mp4" for number in numbers),
        captions=("",) * count,
        share=1.0,
        ends_step=True,
        epoch=1,
    )


def make(oracle: Any, seed: int = 5, **settings: Any) -> FlowMatching:
    return FlowMatching(oracle, None, FlowSection(**settings), seed)  # type: ignore[arg-type]


def test_the_true_velocity_has_no_loss() -> None:
    batch = make_batch((0, 1, 2))
    (term,) = make(Oracle(batch.latents))(nn.Identity(), batch, 1)
    assert term.value.item() < 1e-8
    assert term.name == "loss"
    assert term.weight == 1.0


def test_a_constant_error_costs_its_square_for_every_sample() -> None:
    batch = make_batch((0, 1, 2))
    (term,) = make(Oracle(batch.latents, error=0.5))(nn.Identity(), batch, 1)
    assert term.per_sample is not None
    assert term.per_sample.tolist() == pytest.approx([0.25] * 3, rel=1e-4)
    assert term.value.item() == pytest.approx(0.25, rel=1e-4)


def test_following_the_oracle_from_its_noise_reaches_the_clip() -> None:
    batch = make_batch((4,))
    oracle = Oracle(batch.latents)
    state = draw_normal(SHAPE, 5, NOISE_STREAM, (4,))
    levels = torch.linspace(1.0, 0.0, 11)
    for now, after in zip(levels[:-1], levels[1:], strict=True):  # noqa: RUF007 - reads as a trajectory
        state = state + (after - now) * oracle.predict(nn.Identity(), None, state, now.reshape(1))
    assert torch.allclose(state, batch.latents, atol=1e-4)


def test_the_model_is_shown_the_stated_noise_level() -> None:
    batch = make_batch(tuple(range(16)), (8, 6, 8, 8))
    oracle = Oracle(batch.latents)
    (term,) = make(oracle)(nn.Identity(), batch, 1)
    noised, sigmas = oracle.seen[0]
    assert noised.dtype == sigmas.dtype == torch.float32
    assert torch.equal(sigmas, term.sigmas)
    found = (noised - (1 - sigmas.reshape(-1, 1, 1, 1, 1)) * batch.latents).flatten(1).std(1)
    assert torch.allclose(found, sigmas, rtol=0.06)


def test_draws_depend_on_the_sample_number_alone() -> None:
    whole, alone = make_batch((7, 8, 9)), make_batch((8,))
    one, other = Oracle(whole.latents), Oracle(alone.latents)
    make(one)(nn.Identity(), whole, 1)
    torch.manual_seed(0)  # the global generator must not matter
    make(other)(nn.Identity(), alone, 1)
    assert torch.equal(one.seen[0][0][1], other.seen[0][0][0])
    assert torch.equal(one.seen[0][1][1], other.seen[0][1][0])


def test_noise_drawn_ahead_is_the_one_it_would_draw() -> None:
    batch = make_batch((7, 8, 9))
    ahead = replace(batch, noise=draw_noise(5, SHAPE, (7, 8, 9)))
    for given in (ahead, ahead.to(torch.device("cpu"), torch.float32)):
        assert torch.equal(
            make(Oracle(batch.latents)).draw(given, 1).noised, make(Oracle(batch.latents)).draw(batch, 1).noised
        )
    first, second = ahead.split(2)
    assert torch.equal(torch.cat([first.noise, second.noise]), ahead.noise)  # type: ignore[list-item, arg-type]


def test_no_two_samples_share_their_noise() -> None:
    batch = make_batch((1, 2, 3))
    same = replace(batch, latents=torch.zeros_like(batch.latents))
    oracle = Oracle(same.latents)
    make(oracle)(nn.Identity(), same, 1)
    directions = oracle.seen[0][0] / oracle.seen[0][1].reshape(-1, 1, 1, 1, 1)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert abs(torch.corrcoef(directions[[one, other]].flatten(1))[0, 1]) < 0.15


def test_the_seed_changes_the_draws() -> None:
    batch = make_batch((1,))
    assert not torch.equal(make(None, seed=1).draw_sigmas(batch), make(None, seed=2).draw_sigmas(batch))


@pytest.mark.parametrize(
    ("settings", "median"),
    [
        ({}, 0.5),
        ({"flow_schedule_shift": 3.0}, 0.75),
        ({"flow_schedule_shift": 0.0}, 0.5),
        ({"flow_sigmoid_scale": 2.0}, 0.5),
        ({"flow_use_uniform_schedule": True}, 0.5),
        ({"flow_schedule_auto_shift": True}, math.exp(0.95) / (1 + math.exp(0.95))),
    ],
)
def test_median_noise_level(settings: dict[str, Any], median: float) -> None:
    batch = make_batch(tuple(range(4000)), (1, 1, 1, 1))
    sigmas = make(None, **settings).draw_sigmas(batch)
    assert sigmas.median().item() == pytest.approx(median, abs=0.02)
    assert ((sigmas > 0) & (sigmas <= 1)).all()


def test_automatic_shift_counts_latent_cells_and_wins() -> None:
    settings = FlowSection.model_construct(flow_schedule_auto_shift=True, flow_schedule_shift=9.0)
    objective = FlowMatching(None, None, settings, 0)  # type: ignore[arg-type]
    assert objective.shift_of(4032) == pytest.approx(math.exp(2.0271), rel=1e-4)
    tall = make_batch((0,), (2, 16, 16, 12))  # 3072 cells
    plain = make(None, seed=0).draw_sigmas(tall)
    assert objective.draw_sigmas(tall).logit().item() == pytest.approx(
        plain.logit().item() + math.log(objective.shift_of(3072)), abs=1e-4
    )


@pytest.mark.parametrize("kind", ["huber", "smooth_l1"])
@pytest.mark.parametrize("course", ["constant", "exponential", "snr"])
def test_rounded_losses_use_the_threshold_of_each_level(kind: str, course: str) -> None:
    batch = make_batch((0, 1, 2))
    (term,) = make(Oracle(batch.latents, error=0.5), loss_type=kind, huber_schedule=course)(nn.Identity(), batch, 1)
    for sigma, loss in zip(term.sigmas.tolist(), term.per_sample.tolist(), strict=True):
        c = {"constant": 0.1, "exponential": 0.1**sigma, "snr": 0.9 * (1 - sigma) ** 2 + 0.1}[course]
        distance = math.sqrt(0.25 + c * c) - c
        assert loss == pytest.approx(2 * c * distance if kind == "huber" else 2 * distance, rel=1e-3)


def test_input_perturbation_shows_more_noise_than_it_asks_for_and_fades() -> None:
    batch = make_batch((0, 1), (8, 6, 8, 8))
    shown = {}
    for step in (1, 6, 11):
        oracle = Oracle(batch.latents)
        make(oracle, input_perturbation=0.5, input_perturbation_steps=10)(nn.Identity(), batch, step)
        shown[step] = oracle.seen[0]
    plain = Oracle(batch.latents)
    make(plain)(nn.Identity(), batch, 1)
    noised, sigmas = plain.seen[0]
    assert torch.equal(shown[11][0], noised)
    for step, share in ((1, 0.5), (6, 0.25)):
        extra = (shown[step][0] - noised) / sigmas.reshape(-1, 1, 1, 1, 1)
        assert extra.std().item() == pytest.approx(share, rel=0.05)


def test_losses_per_band_of_noise_levels() -> None:
    assert band_means([0.1, 0.2, 0.6, 1.0], [1.0, 3.0, 5.0, 7.0]) == {
        "loss/sigma_0.00-0.25": 2.0,
        "loss/sigma_0.50-0.75": 5.0,
        "loss/sigma_0.75-1.00": 7.0,
    }
    assert band_means([], []) == {}
