"""CREPA on a small real transformer: what it reads, whom it moves, when it stops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import LTXVideoTransformer3DModel
from torch import Tensor, nn

from simpletuner.config.sections.flow import FlowSection
from simpletuner.config.sections.guidance import AuxiliarySection, CrepaSection, RolloutSection
from simpletuner.core.errors import UserError
from simpletuner.data.batch import Batch
from simpletuner.data.sample import BucketKey
from simpletuner.objectives.auxiliary import Surroundings
from simpletuner.objectives.combined import CombinedObjective, build_further
from simpletuner.objectives.crepa import Crepa, Projector, build_crepa
from simpletuner.objectives.flow_matching import FlowMatching
from simpletuner.objectives.terms import LossTerm
from simpletuner.runtime.random import draw_normal

FRAMES, HEIGHT, WIDTH, WIDE, FEATURES = 3, 2, 4, 16, 6
SHAPE = (4, FRAMES, HEIGHT, WIDTH)


def make_transformer() -> nn.Module:
    torch.manual_seed(0)
    return LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=WIDE,
        num_layers=4, caption_channels=12,
    )  # fmt: skip


class Family:
    block_list = "transformer_blocks"

    def predict(
        self, transformer: nn.Module, source: Any, noised: Tensor, sigmas: Tensor, text: Tensor, mask: Tensor,
        rates: Tensor, first_frame_sigmas: Tensor | None = None, cell_sigmas: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        times = sigmas if cell_sigmas is None else cell_sigmas.flatten(1)
        tokens = transformer(
            noised.flatten(2).transpose(1, 2), text, 1000 * times, mask, num_frames=FRAMES, height=HEIGHT,
            width=WIDTH, return_dict=False,
        )[0]  # fmt: skip
        return tokens.transpose(1, 2).reshape(noised.shape)

    def hidden_width(self, transformer: nn.Module) -> int:
        return WIDE

    def noise_levels(self, source: Any, steps: int, size: tuple[int, int, int]) -> Tensor:
        return torch.linspace(1, 0, steps + 1)


def make_batch(numbers: tuple[int, ...] = (0, 1), features: Tensor | None = None) -> Batch:
    count = len(numbers)
    if features is None:
        features = draw_normal((FRAMES, HEIGHT, WIDTH, FEATURES), 9, "features", numbers)
    return Batch(
        latents=draw_normal(SHAPE, 3, "latents", numbers), prompt_embeds=draw_normal((5, 12), 4, "text", numbers),
        prompt_mask=torch.ones(count, 5, dtype=torch.bool), frame_rates=torch.full((count,), 25.0),
        bucket=BucketKey(128, 64, 17), sample_numbers=numbers, sample_names=tuple(map(str, numbers)),
        captions=("",) * count, share=1.0, ends_step=True, epoch=1, features=features,
    )  # fmt: skip


def surroundings(transformer: nn.Module, **settings: Any) -> Surroundings:
    crepa = CrepaSection(**{"crepa_enabled": True, "crepa_block_index": 1, **settings})
    return Surroundings(
        Family(), None, transformer, crepa, RolloutSection(), AuxiliarySection(), 5, 100,  # type: ignore[arg-type]
        torch.device("cpu"), FEATURES,
    )  # fmt: skip


def make(transformer: nn.Module, **settings: Any) -> tuple[CombinedObjective, Crepa]:
    flow = FlowMatching(Family(), None, FlowSection(), 5)  # type: ignore[arg-type]
    further = build_further(surroundings(transformer, **settings))
    assert list(further) == ["crepa"]
    crepa = further["crepa"]
    assert isinstance(crepa, Crepa)
    return CombinedObjective(flow, [crepa], "transformer_blocks"), crepa


def by_name(terms: tuple[LossTerm, ...]) -> Mapping[str, LossTerm]:
    return {term.name: term for term in terms}


def test_trap_83_it_moves_the_projector_and_the_blocks_up_to_its_own() -> None:
    transformer = make_transformer()
    objective, crepa = make(transformer)
    terms = by_name(objective(transformer, make_batch(), 1))
    terms["crepa_loss"].value.backward()
    moved = {name for name, p in transformer.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    blocks = {name.split(".")[1] for name in moved if name.startswith("transformer_blocks.")}
    assert blocks == {"0", "1"}
    assert not any(name.startswith(("proj_out", "scale_shift_table")) for name in moved)
    assert crepa.companion is not None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in crepa.companion.parameters())


def test_the_term_is_the_score_of_the_captured_states() -> None:
    transformer = make_transformer()
    objective, crepa = make(transformer, crepa_lambda=0.7, crepa_adjacent_distance=0)
    seen: list[Tensor] = []
    hook = transformer.transformer_blocks[1].register_forward_hook(lambda _, __, out: seen.append(out.detach()))
    batch = make_batch()
    terms = by_name(objective(transformer, batch, 1))
    hook.remove()
    assert len(seen) == 1
    assert isinstance(crepa.companion, Projector)
    projected = crepa.companion(seen[0]).reshape(2, FRAMES, HEIGHT, WIDTH, FEATURES)
    assert batch.features is not None
    expected = nn.functional.cosine_similarity(projected, batch.features, dim=-1).mean()
    assert terms["crepa_loss"].value.item() == pytest.approx(-expected.item(), abs=1e-5)
    assert terms["crepa_loss"].weight == 0.7
    assert terms["crepa_similarity_self"].value.item() == pytest.approx(expected.item(), abs=1e-5)
    assert terms["crepa_weight"].value.item() == pytest.approx(0.7)
    reported = {name for name, term in terms.items() if term.is_reported_only}
    assert reported == {"crepa_alignment_score", "crepa_similarity_self", "crepa_weight"}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trap_39_checkpointing_changes_no_gradient(checkpointing: bool) -> None:
    plain, other = make_transformer(), make_transformer()
    if checkpointing:
        other.enable_gradient_checkpointing()
    gradients = []
    for transformer in (plain, other):
        transformer.train()
        objective, crepa = make(transformer)
        terms = objective(transformer, make_batch(), 1)
        torch.autograd.backward([t.value * t.weight for t in terms if not t.is_reported_only])
        assert isinstance(crepa.companion, Projector)
        gradients.append([p.grad for p in (*transformer.parameters(), *crepa.companion.parameters())])
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, atol=1e-6)


def test_switched_off_a_step_is_the_plain_one() -> None:
    transformer = make_transformer()
    flow = FlowMatching(Family(), None, FlowSection(), 5)  # type: ignore[arg-type]
    plain = flow(transformer, make_batch(), 1)
    objective, _ = make(transformer, crepa_cutoff_step=3)
    assert [t.name for t in objective(transformer, make_batch(), 3)][1] == "crepa_loss"
    after = objective(transformer, make_batch(), 4)
    assert [t.name for t in after] == ["loss"]
    assert torch.equal(after[0].value, plain[0].value)
    weightless, _ = make(transformer, crepa_lambda=0.0)
    assert [t.name for t in weightless(transformer, make_batch(), 1)] == ["loss"]


@pytest.mark.parametrize("mode", ["permanent", "recoverable"])
def test_threshold(mode: str) -> None:
    """Off once the smoothed similarity is there; with no gradient then, and on again only if it may recover."""
    transformer = make_transformer()
    objective, crepa = make(
        transformer, crepa_similarity_threshold=0.9, crepa_similarity_ema_decay=0.0, crepa_threshold_mode=mode
    )
    projector = crepa.companion
    assert isinstance(projector, Projector)
    objective(transformer, make_batch(), 1)
    assert projector.off.item() == 0
    batch = make_batch()
    captured: list[Tensor] = []
    hook = transformer.transformer_blocks[1].register_forward_hook(lambda _, __, out: captured.append(out.detach()))
    objective(transformer, batch, 1)
    hook.remove()
    with torch.no_grad():
        same = projector(captured[0]).reshape(2, FRAMES, HEIGHT, WIDTH, FEATURES)
    objective(transformer, replace(batch, features=same), 2)
    assert projector.off.item() == 1
    terms = by_name(objective(transformer, make_batch(), 3))
    if mode == "permanent":
        assert set(terms) == {"loss"}  # the host knows, so the step costs what it costs without the term
        return
    assert terms["crepa_loss"].value.item() == 0
    assert terms["crepa_weight"].value.item() == 0
    terms["crepa_loss"].value.backward()
    assert all(p.grad is None or not p.grad.any() for p in transformer.parameters())
    assert projector.off.item() == 0


def test_smoothed_similarity_is_a_closed_form() -> None:
    projector = Projector(2, 2, torch.device("cpu"), 0)
    settings = CrepaSection(crepa_similarity_ema_decay=0.9)
    for value in (0.2, 0.4, -0.1):
        projector.note(torch.tensor(value), settings)
    assert projector.similarity.item() == pytest.approx(0.81 * 0.2 + 0.09 * 0.4 + 0.1 * -0.1)
    assert projector.off.item() == 0


def test_a_later_block_can_teach() -> None:
    transformer = make_transformer()
    objective, crepa = make(transformer, crepa_feature_source="backbone", crepa_teacher_block_index=3)
    assert isinstance(crepa.companion, Projector)
    assert crepa.companion.linear.out_features == WIDE
    terms = by_name(objective(transformer, make_batch(features=torch.zeros(0)), 1))
    terms["crepa_loss"].value.backward()
    # The teacher does not move: nothing above the student's block has a gradient.
    moved = {name for name, p in transformer.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert not any(name.startswith(("transformer_blocks.2", "transformer_blocks.3")) for name in moved)
    assert any(name.startswith("transformer_blocks.1") for name in moved)


@pytest.mark.parametrize("settings", [{"crepa_block_index": 4}, {"crepa_teacher_block_index": 9}])
def test_a_block_that_is_not_there_is_named(settings: dict[str, int]) -> None:
    with pytest.raises(UserError, match="the last one is 3"):
        build_crepa(surroundings(make_transformer(), **settings))


def test_the_projector_starts_alike_for_a_seed_and_leaves_the_random_state() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second = (Projector(8, 4, torch.device("cpu"), 1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.linear.weight, second.linear.weight)
    assert not torch.equal(first.linear.weight, Projector(8, 4, torch.device("cpu"), 2).linear.weight)


def test_all_three_go_together() -> None:
    transformer = make_transformer()
    places = replace(
        surroundings(transformer),
        rollout=RolloutSection(scheduled_sampling_max_step_offset=2, scheduled_sampling_probability=1.0),
        auxiliary=AuxiliarySection(temporal_difference_weight=0.1),
    )
    further = build_further(places)
    assert list(further) == ["rollout", "crepa", "temporal_difference"]
    flow = FlowMatching(Family(), None, FlowSection(), 5)  # type: ignore[arg-type]
    objective = CombinedObjective(flow, list(further.values()), "transformer_blocks")
    terms = by_name(objective(transformer, make_batch(tuple(range(4))), 1))
    assert {"loss", "rollout/drift", "rollout/forwards", "crepa_loss", "temporal_difference"} <= set(terms)
    torch.autograd.backward([t.value * t.weight for t in terms.values() if not t.is_reported_only])
