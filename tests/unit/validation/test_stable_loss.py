"""The evaluation loss: the same number for the same weights, whatever happens around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from simpletuner.config.sections.adapter import AdapterSection
from simpletuner.config.sections.flow import FlowSection
from simpletuner.config.sections.model import ModelSection
from simpletuner.data.batch import Batch
from simpletuner.data.sample import CropPlan, FramePlan, MediaInfo, Sample
from simpletuner.models.adapters.lora import build_lora
from simpletuner.models.family import Source
from simpletuner.models.ltxvideo.family import FAMILY
from simpletuner.objectives.flow_matching import NOISE_STREAM, FlowMatching, loss_at
from simpletuner.runtime.random import draw_normal
from simpletuner.validation.judgement import Mark, judge
from simpletuner.validation.stable_loss import (
    POOLED,
    Measurement,
    Yardstick,
    choose_clips,
    measure,
    pool,
    with_first_frames,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source(miniature: Path) -> Source:
    return FAMILY.resolve(ModelSection(pretrained_model_name_or_path=str(miniature), tokenizer_max_length=16))


@pytest.fixture(scope="module")
def transformer(source: Source) -> nn.Module:
    """The small model with a LoRA that does something and drops much, in training mode."""
    model = FAMILY.load_transformer(source, torch.float32, CPU)  # type: ignore[arg-type]
    adapter = build_lora(model, FAMILY, AdapterSection(lora_rank=4, lora_dropout=0.5), None, torch.float32, 1)
    with torch.no_grad():
        for parameter in adapter.parameters().values():
            parameter.add_(0.05)
    return model.train()


def clip(path: str, dataset: str = "held", frames: int = 9, rate: float = 12.0) -> Sample:
    info = MediaInfo("video", 96, 64, 12.0, 12, 1.0, 0, 1.0, "h264", 1, "1")
    return Sample(dataset, path, info, FramePlan(frames, rate, 0.0), CropPlan(96, 64, 0, 0, 96, 64), ("a cat",), 1)


def latents(sample: Sample) -> Tensor:
    shape = (128, (sample.frames.num_frames + 7) // 8, 2, 3)
    return draw_normal(shape, 7, sample.path, [0])[0].to(torch.bfloat16)


def features(text: str) -> tuple[Tensor, Tensor]:
    mask = torch.arange(16) < 3
    return draw_normal((16, 64), 8, text, [0])[0] * mask[:, None], mask


def yardstick(samples: Sequence[Sample], batch_size: int = 2, levels: int = 6) -> Yardstick:
    return Yardstick({"held": tuple(samples)}, levels, batch_size, latents, features)


@pytest.fixture
def take(transformer: nn.Module, source: Source) -> Callable[[Yardstick], Measurement]:
    return lambda stick: measure(transformer, FAMILY, source, stick, CPU, torch.float32)


CLIPS = (clip("a.mp4"), clip("b.mp4", frames=17), clip("still.png", frames=1))


def test_two_measurements_are_equal_and_leave_no_trace(
    take: Callable[[Yardstick], Measurement], transformer: nn.Module
) -> None:
    training = {name for name, module in transformer.named_modules() if module.training}
    before = torch.get_rng_state()
    first = take(yardstick(CLIPS))
    assert torch.equal(torch.get_rng_state(), before)
    assert {name for name, module in transformer.named_modules() if module.training} == training
    torch.rand(17)
    assert take(yardstick(CLIPS)) == first
    assert first.sigmas == pytest.approx([1 / 12, 3 / 12, 5 / 12, 7 / 12, 9 / 12, 11 / 12])
    assert first.loss == pytest.approx(sum(first.by_level["held"]) / 6)
    assert not torch.is_inference_mode_enabled()
    assert all(parameter.grad is None for parameter in transformer.parameters())


def test_batch_order_and_names_of_sets_change_nothing(take: Callable[[Yardstick], Measurement]) -> None:
    found = take(yardstick(CLIPS, batch_size=1))
    for batch_size in (2, 28):
        assert take(yardstick(CLIPS, batch_size)).by_level["held"] == pytest.approx(found.by_level["held"], abs=1e-6)
    turned = [replace(sample, dataset="other") for sample in reversed(CLIPS)]
    assert take(yardstick(turned, batch_size=1)).by_level["held"] == pytest.approx(found.by_level["held"], abs=1e-12)
    alone = [take(yardstick([sample], 1)).by_level["held"] for sample in CLIPS]
    means = [sum(values) / 3 for values in zip(*alone, strict=True)]
    assert found.by_level["held"] == pytest.approx(means, abs=1e-12)


def test_each_clip_has_noise_of_its_own(transformer: nn.Module, source: Source) -> None:
    same = latents(CLIPS[0])
    stick = Yardstick(
        {"a": (clip("a.mp4"),), "b": (clip("b.mp4"),), "second": (replace(clip("a.mp4"), part=1),)},
        2, 2, lambda sample: same, features,
    )  # fmt: skip
    losses = measure(transformer, FAMILY, source, stick, CPU, torch.float32).losses
    assert len(set(losses.values())) == 3


def test_it_measures_what_training_lowers(transformer: nn.Module, source: Source) -> None:
    """At the levels and noises that training draws, both give one number; frozen values hold it to the formula."""
    samples = [clip("a.mp4"), clip("b.mp4")]
    embeds, masks = zip(*(features("a cat") for _ in samples), strict=True)
    batch = Batch(
        torch.stack([latents(sample) for sample in samples]), torch.stack(embeds), torch.stack(masks),
        torch.full((2,), 12.0), samples[0].bucket, (4, 5), ("a", "b"), ("", ""), 1.0, True, 1,
    )  # fmt: skip
    objective = FlowMatching(FAMILY, source, FlowSection(), seed=3)
    noise = draw_normal(batch.latents.shape[1:], 3, NOISE_STREAM, (4, 5))
    sigmas = objective.draw_sigmas(batch)
    transformer.eval()
    with torch.no_grad():
        (term,) = objective(transformer, batch, 1)
        assert torch.equal(loss_at(FAMILY, source, transformer, batch, sigmas, noise), term.per_sample)  # type: ignore[arg-type]
    transformer.train()


def test_given_first_frames_are_no_part_of_the_loss(
    take: Callable[[Yardstick], Measurement], transformer: nn.Module, source: Source
) -> None:
    sets = with_first_frames({"held": CLIPS, "stills": CLIPS[2:]})
    assert list(sets) == ["held", "held/i2v", "stills"]  # nothing of a still would be left to predict
    assert sets["held/i2v"] == CLIPS[:2]
    found = take(replace(yardstick(()), sets={name: sets[name] for name in ("held", "held/i2v")}))
    assert found.loss == pytest.approx((found.losses["held"] + found.losses["held/i2v"]) / 2)
    plain = take(yardstick(CLIPS[:2])).losses["held"]
    assert found.losses["held/i2v"] != pytest.approx(plain, rel=1e-3)
    # By hand: the first frame is clean, at time 0, and left out of the mean.
    clean, sigma = latents(CLIPS[0])[None].float(), torch.tensor([0.25])
    embeds, mask = (tensor[None] for tensor in features("a cat"))
    noise = draw_normal(clean.shape[1:], 3, NOISE_STREAM, [4])
    noised = (1 - sigma) * clean + sigma * noise
    noised[:, :, :1] = clean[:, :, :1]
    batch = Batch(clean, embeds, mask, torch.tensor([12.0]), CLIPS[0].bucket, (4,), ("a",), ("",), 1.0, True, 1)
    with torch.no_grad():
        loss = loss_at(FAMILY, source, transformer.eval(), batch, sigma, noise, gives_first=True)  # type: ignore[arg-type]
        velocity = FAMILY.predict(
            transformer, source, noised, sigma, embeds, mask, batch.frame_rates,  # type: ignore[arg-type]
            first_frame_sigmas=torch.zeros(1),
        )  # fmt: skip
    transformer.train()
    assert loss.item() == pytest.approx((velocity - (noise - clean))[:, :, 1:].square().mean().item(), rel=1e-5)


def test_pooling_counts_clips_and_sets_count_alike(take: Callable[[Yardstick], Measurement]) -> None:
    sets = {"one": CLIPS[:1], "two": CLIPS[1:]}
    apart = take(replace(yardstick(()), sets=sets))
    assert apart.loss == pytest.approx((apart.losses["one"] + apart.losses["two"]) / 2)
    together = take(replace(yardstick(()), sets=pool(sets)))
    assert together.losses[POOLED] == pytest.approx((apart.losses["one"] + 2 * apart.losses["two"]) / 3)


def test_the_choice_of_clips_is_stable() -> None:
    names = [clip(f"{number}.mp4") for number in range(40)]
    chosen = choose_clips(names, 4)
    assert len(chosen) == 4
    assert choose_clips(list(reversed(names)), 4) == chosen
    assert [sample.path for sample in chosen] != ["0.mp4", "1.mp4", "10.mp4", "11.mp4"]
    # A clip that joins takes the place of one at most.
    assert len(set(choose_clips([*names, clip("new.mp4")], 4)) & set(chosen)) >= 3
    assert choose_clips(names[:2], 4) == tuple(names[:2])


# Judging ----------------------------------------------------------------------------------------


def marks(*losses: float, train: Sequence[float] = ()) -> list[Mark]:
    trained = [*train, *[math.nan] * (len(losses) - len(train))]
    return [Mark(10 * number, loss, trained[number]) for number, loss in enumerate(losses)]


def test_the_lowest_loss_is_best_and_the_first_of_equals() -> None:
    assert judge([]).best is None
    assert judge(marks(0.5, 0.4, 0.4)).best == Mark(10, 0.4)
    assert not judge(marks(0.5, 0.4, 0.4)).is_best
    assert judge(marks(0.5, 0.4, 0.3)).is_best
    assert judge(marks(0.5, math.nan, 0.6)).best == Mark(0, 0.5)


@pytest.mark.parametrize(
    ("losses", "patience", "min_delta", "stops"),
    [
        ([0.5, 0.4, 0.41, 0.42], 2, 0.0, True),
        ([0.5, 0.4, 0.41, 0.39], 2, 0.0, False),
        ([0.5, 0.4, 0.41, 0.42], 0, 0.0, False),
        ([0.5, 0.49, 0.48, 0.47], 2, 0.1, True),
        ([0.5, 0.45, 0.4, 0.39], 2, 0.1, False),  # the small steps add up to one that counts
        ([0.5, math.nan, math.nan], 2, 0.0, True),
    ],
)
def test_patience(losses: list[float], patience: int, min_delta: float, stops: bool) -> None:
    assert judge(marks(*losses), patience, min_delta).stops is stops


def test_learning_by_heart_is_told_once() -> None:
    falling = (1.0, 0.8, 0.6, 0.5, 0.4)
    assert judge(marks(0.5, 0.4, 0.42, train=falling)).warning == ""
    told = judge(marks(0.5, 0.4, 0.42, 0.45, train=falling)).warning
    assert "from 0.4000 (step 10) to 0.4500 (step 30)" in told
    assert "0.8000 to 0.5000" in told
    assert judge(marks(0.5, 0.4, 0.42, 0.45, 0.47, train=falling)).warning == ""
    assert judge(marks(0.5, 0.4, 0.401, 0.402, train=falling)).warning == ""  # within the noise of it
    assert "while the training loss" not in judge(marks(0.5, 0.4, 0.42, 0.45)).warning
