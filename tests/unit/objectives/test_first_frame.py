"""Image-to-video training: what the model is shown, told and asked, per sample (traps 48 to 52)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simpletuner.config.sections.flow import FlowSection
from simpletuner.data.batch import Batch
from simpletuner.data.sample import BucketKey
from simpletuner.objectives.flow_matching import FlowMatching
from simpletuner.objectives.terms import LossTerm
from simpletuner.runtime.random import draw_normal

PROTECT: dict[str, Any] = {"ltx_i2v_prob": 1.0, "ltx_protect_first_frame": True}


class Oracle:
    """Answers with the true velocity plus an error per latent frame, and remembers what it was given."""

    def __init__(self, latents: Tensor, frame_errors: tuple[float, ...] | None = None) -> None:
        self.latents = latents
        self.errors = torch.tensor(frame_errors or (0.0,) * latents.shape[2])
        self.noised = self.levels = torch.empty(0)
        self.first: Tensor | None = None

    def predict(
        self, transformer: nn.Module, source: Any, noised_latents: Tensor, sigmas: Tensor, *conditions: Tensor,
        first_frame_sigmas: Tensor | None = None,
        cell_sigmas: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        self.noised, self.first = noised_latents, first_frame_sigmas
        self.levels = sigmas[:, None].repeat(1, noised_latents.shape[2])
        if first_frame_sigmas is not None:
            self.levels[:, 0] = first_frame_sigmas
        share = self.levels[:, None, :, None, None]
        velocity = (noised_latents - self.latents) / share.clamp(min=1e-9)
        return velocity + self.errors[:, None, None]


def make_batch(
    count: int, frames: int = 3, is_i2v: tuple[bool, ...] | None = None, numbers: range | None = None
) -> Batch:
    numbers = numbers or range(count)
    return Batch(
        latents=draw_normal((8, frames, 6, 5), 3, "latents", numbers),
        prompt_embeds=torch.zeros(count, 6, 12),
        prompt_mask=torch.ones(count, 6, dtype=torch.bool),
        frame_rates=torch.full((count,), 25.0),
        bucket=BucketKey(160, 192, 8 * frames - 7),
        sample_numbers=tuple(numbers),
        sample_names=tuple(f"d/{number}.mp4" for number in numbers),
        captions=("",) * count,
        share=1.0,
        ends_step=True,
        epoch=1,
        is_i2v=(True,) * count if is_i2v is None else is_i2v,
    )


def run(batch: Batch, errors: tuple[float, ...] | None = None, **settings: Any) -> tuple[Oracle, LossTerm]:
    oracle = Oracle(batch.latents, errors)
    objective = FlowMatching(oracle, None, FlowSection(**settings), 5)  # type: ignore[arg-type]
    (term,) = objective(nn.Identity(), batch, 1)
    return oracle, term


def test_a_protected_frame_is_the_clean_latent_at_time_zero() -> None:
    batch = make_batch(3)
    oracle, _ = run(batch, input_perturbation=0.3, **PROTECT)
    assert torch.equal(oracle.noised[:, :, 0], batch.latents[:, :, 0])
    assert oracle.first is not None
    assert oracle.first.tolist() == [0.0] * 3
    assert (oracle.levels[:, 1:] > 0).all()


@pytest.mark.parametrize("protect", [False, True])
def test_every_frame_has_the_noise_that_the_model_is_told(protect: bool) -> None:
    batch = make_batch(400)
    settings = {**PROTECT, "ltx_protect_first_frame": protect, "ltx_partial_noise_fraction": 0.8}
    oracle, _ = run(batch, **settings)
    noise = oracle.noised - (1 - oracle.levels[:, None, :, None, None]) * batch.latents
    found = noise.square().mean((1, 3, 4)).sqrt()
    for frame in range(3):
        ratio = found[:, frame] / oracle.levels[:, frame].clamp(min=1e-9)
        assert ratio.mean().item() == pytest.approx(0.0 if protect and frame == 0 else 1.0, abs=0.01)


def test_partial_protection_takes_up_to_its_fraction_of_the_noise() -> None:
    batch = make_batch(2000)
    oracle, term = run(batch, ltx_i2v_prob=1.0, ltx_partial_noise_fraction=0.4)
    assert oracle.first is not None
    lacking = 1 - oracle.first / term.sigmas
    assert lacking.min() >= 0
    assert lacking.max() <= 0.4
    assert lacking.mean().item() == pytest.approx(0.2, abs=0.01)


def test_the_loss_leaves_out_a_clean_frame_and_is_the_mean_of_the_rest() -> None:
    batch = make_batch(3)
    _, wrong_first = run(batch, (1.0, 0.0, 0.0), **PROTECT)
    assert wrong_first.value.item() < 1e-8
    for frames in (2, 3, 7):
        _, wrong_rest = run(make_batch(3, frames), (9.0, *[0.5] * (frames - 1)), **PROTECT)
        assert wrong_rest.per_sample is not None
        assert wrong_rest.per_sample.tolist() == pytest.approx([0.25] * 3, rel=1e-4)
    _, partial = run(batch, (1.0, 0.0, 0.0), ltx_i2v_prob=1.0)
    assert partial.value.item() == pytest.approx(1 / 3, rel=1e-3)


@pytest.mark.parametrize("kind", ["huber", "smooth_l1"])
def test_other_losses_leave_the_clean_frame_out_too(kind: str) -> None:
    settings = {"loss_type": kind, "huber_schedule": "constant"}
    _, plain = run(make_batch(3), (0.5, 0.5, 0.5), **settings)
    _, given = run(make_batch(3), (9.0, 0.5, 0.5), **settings, **PROTECT)
    assert given.value.item() == pytest.approx(plain.value.item(), rel=1e-4)


def test_one_frame_is_plain_training() -> None:
    batch = make_batch(2, frames=1)
    oracle, term = run(batch, (0.5,), **PROTECT)
    assert oracle.first is None
    assert term.value.item() == pytest.approx(0.25, rel=1e-3)


@pytest.mark.parametrize(
    ("is_i2v", "settings"),
    [
        ((True,) * 4, {**PROTECT, "ltx_i2v_prob": 0.0}),
        ((False,) * 4, PROTECT),
        ((), PROTECT),
    ],
)
def test_without_a_chance_it_is_plain_training_bit_for_bit(is_i2v: tuple[bool, ...], settings: dict[str, Any]) -> None:
    plain, plain_term = run(make_batch(4, is_i2v=()), (0.1, 0.2, 0.3))
    oracle, term = run(make_batch(4, is_i2v=is_i2v), (0.1, 0.2, 0.3), **settings)
    assert oracle.first is None
    assert torch.equal(oracle.noised, plain.noised)
    assert torch.equal(term.value, plain_term.value)


def test_samples_are_drawn_one_by_one_with_the_stated_chance() -> None:
    batch = make_batch(3000, is_i2v=(True, False) * 1500)
    oracle, _ = run(batch, (9.0, 0.0, 0.0), **{**PROTECT, "ltx_i2v_prob": 0.3})
    assert oracle.first is not None
    given = oracle.first == 0
    assert given[0::2].float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert not given[1::2].any()
    again, _ = run(make_batch(3000, numbers=range(3000, 6000)), **{**PROTECT, "ltx_i2v_prob": 0.3})
    assert again.first is not None
    assert not torch.equal(again.first == 0, given)


def test_a_draw_is_the_same_alone_and_in_a_batch_and_spares_its_neighbours() -> None:
    settings = {**PROTECT, "ltx_i2v_prob": 0.5}
    whole, whole_term = run(make_batch(12), (0.7, 0.1, 0.2), **settings)
    plain, plain_term = run(make_batch(12, is_i2v=()), (0.7, 0.1, 0.2))
    assert whole.first is not None
    assert whole_term.per_sample is not None
    assert plain_term.per_sample is not None
    kinds = set()
    for number in range(12):
        alone, term = run(make_batch(1, numbers=range(number, number + 1)), (0.7, 0.1, 0.2), **settings)
        given = whole.first[number].item() == 0
        kinds.add(given)
        assert (alone.first is not None) == given
        assert torch.equal(alone.noised[0], whole.noised[number])
        assert term.per_sample is not None
        torch.testing.assert_close(term.per_sample[0], whole_term.per_sample[number])
        # The other frames, and whole samples that are not drawn, are those of plain training.
        assert torch.equal(whole.noised[number, :, 1:], plain.noised[number, :, 1:])
        if not given:
            assert torch.equal(whole.noised[number], plain.noised[number])
            assert torch.equal(whole_term.per_sample[number], plain_term.per_sample[number])
    assert kinds == {True, False}


def test_the_choice_does_not_depend_on_the_other_options() -> None:
    batch = make_batch(64)
    clean, _ = run(batch, **{**PROTECT, "ltx_i2v_prob": 0.5})
    partial, term = run(batch, ltx_i2v_prob=0.5, ltx_partial_noise_fraction=1.0)
    assert clean.first is not None
    assert partial.first is not None
    assert torch.equal(clean.first == 0, partial.first < term.sigmas)
    stepped = replace(batch, share=0.5, ends_step=False)
    later, _ = run(stepped, **{**PROTECT, "ltx_i2v_prob": 0.5})
    assert later.first is not None
    assert torch.equal(later.first, clean.first)
