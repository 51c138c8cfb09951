"""Self-flow on a small real transformer: what the model is shown, what it is taught, who moves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simpletuner.config.sections.flow import FlowSection
from simpletuner.config.sections.guidance import AuxiliarySection, CrepaSection, RolloutSection
from simpletuner.data.batch import Batch
from simpletuner.maths.noising import noise_latents
from simpletuner.models.ltxvideo.family import FAMILY
from simpletuner.models.ltxvideo.frame_times import accept_frame_times
from simpletuner.objectives.auxiliary import Drawn, Surroundings
from simpletuner.objectives.combined import CombinedObjective
from simpletuner.objectives.crepa import Crepa, build_crepa
from simpletuner.objectives.first_frame import GivenFrames
from simpletuner.objectives.flow_matching import FlowMatching
from simpletuner.objectives.self_flow import SelfFlow
from tests.unit.objectives.test_crepa import make_batch, make_transformer

SOURCE: Any = type("Source", (), {"positions": "causal", "compiled": False})
STUDENT, TEACHER = 1, 3


def other_levels(batch: Batch) -> Tensor:
    return torch.linspace(0.1, 0.9, len(batch.sample_numbers))


def surroundings(transformer: nn.Module, ratio: float) -> Surroundings:
    crepa = CrepaSection(
        crepa_enabled=True, crepa_block_index=STUDENT, crepa_teacher_block_index=TEACHER,
        crepa_feature_source="self_flow", crepa_self_flow_mask_ratio=ratio,
    )  # fmt: skip
    return Surroundings(
        FAMILY, SOURCE, transformer, crepa, RolloutSection(), AuxiliarySection(), 5, 100, torch.device("cpu"),
        other_levels=other_levels,
    )  # fmt: skip


def objective(transformer: nn.Module, ratio: float) -> tuple[CombinedObjective, Crepa]:
    crepa = build_crepa(surroundings(transformer, ratio))
    return CombinedObjective(FlowMatching(FAMILY, SOURCE, FlowSection(), 5), [crepa], "transformer_blocks"), crepa


def drawn_of(batch: Batch) -> Drawn:
    return FlowMatching(FAMILY, SOURCE, FlowSection(), 5).draw(batch, 1)


@pytest.fixture
def transformer() -> nn.Module:
    found = make_transformer().eval()
    accept_frame_times(found)
    return found


class Asked:
    """Stands where the model is asked, and keeps what it was shown."""

    def __init__(self, transformer: nn.Module, batch: Batch) -> None:
        self._flow = FlowMatching(FAMILY, SOURCE, FlowSection(), 5)
        self._transformer, self._batch = transformer, batch
        self.shown: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def __call__(self, noised: Tensor, sigmas: Tensor, first_sigmas: Tensor | None) -> Tensor:
        assert not torch.is_grad_enabled()
        self.shown.append((noised, sigmas, first_sigmas))
        return self._flow.predict(self._transformer, self._batch, noised, sigmas, first_sigmas)


def test_masked_cells_have_the_other_level_and_the_teacher_sees_the_lower_one(transformer: nn.Module) -> None:
    batch = make_batch((0, 1, 2, 3))
    drawn, other = drawn_of(batch), other_levels(batch)
    asked = Asked(transformer, batch)
    shown = SelfFlow(surroundings(transformer, 0.5)).prepare(asked, batch, drawn)
    assert shown.cell_sigmas is not None
    masked = shown.cell_sigmas == other[:, None, None, None]
    assert ((shown.cell_sigmas == drawn.sigmas[:, None, None, None]) | masked).all()
    assert 0.3 < masked.float().mean() < 0.7
    wide = masked[:, None].expand_as(drawn.noised)
    assert torch.equal(shown.noised[~wide], drawn.noised[~wide])
    assert torch.equal(shown.noised[wide], noise_latents(drawn.latents, drawn.noise, other)[wide])
    assert torch.equal(shown.target, drawn.target)
    [(noised, levels, _)] = asked.shown
    assert torch.equal(levels, torch.minimum(drawn.sigmas, other))
    assert torch.equal(noised, noise_latents(drawn.latents, drawn.noise, levels))


def test_the_share_of_masked_cells_and_that_it_depends_on_the_sample_alone(transformer: nn.Module) -> None:
    teacher = SelfFlow(surroundings(transformer, 0.1))
    batch = make_batch(tuple(range(60)))
    cells = teacher.prepare(Asked(transformer, batch), batch, drawn_of(batch)).cell_sigmas
    assert cells is not None
    assert (cells == other_levels(batch)[:, None, None, None]).float().mean().item() == pytest.approx(0.1, abs=0.03)
    one = make_batch((0,))
    alone = teacher.prepare(Asked(transformer, one), one, drawn_of(one)).cell_sigmas
    assert alone is not None
    assert torch.equal(alone == drawn_of(one).sigmas[0], cells[:1] == drawn_of(batch).sigmas[0])


def test_with_no_cell_masked_the_loss_is_the_plain_one(transformer: nn.Module) -> None:
    batch = make_batch()
    plain = FlowMatching(FAMILY, SOURCE, FlowSection(), 5)(transformer, batch, 1)[0]
    mixed = objective(transformer, 0.0)[0](transformer, batch, 1)[0]
    torch.testing.assert_close(mixed.value, plain.value, rtol=1e-5, atol=1e-6)


def test_a_given_first_frame_stays(transformer: nn.Module) -> None:
    batch = make_batch()
    zero = torch.zeros(2)
    drawn = drawn_of(batch)
    noised = drawn.noised.clone()
    noised[:, :, 0] = drawn.latents[:, :, 0]
    given = GivenFrames(zero, torch.ones(2, dtype=torch.bool))
    drawn = replace(drawn, noised=noised, given=given, first_sigmas=zero)
    asked = Asked(transformer, batch)
    shown = SelfFlow(surroundings(transformer, 0.5)).prepare(asked, batch, drawn)
    assert shown.cell_sigmas is not None
    assert not shown.cell_sigmas[:, 0].any()
    assert torch.equal(shown.noised[:, :, 0], drawn.latents[:, :, 0])
    assert torch.equal(asked.shown[0][0][:, :, 0], drawn.latents[:, :, 0])
    assert asked.shown[0][2] is zero


def test_the_student_moves_and_the_teacher_does_not(transformer: nn.Module) -> None:
    combined, crepa = objective(transformer, 0.3)
    terms = {term.name: term for term in combined(transformer, make_batch(), 1)}
    terms["crepa_loss"].value.backward()
    moved = {
        name.split(".")[1]
        for name, parameter in transformer.named_parameters()
        if name.startswith("transformer_blocks.") and parameter.grad is not None and parameter.grad.any()
    }
    assert moved == {"0", "1"}
    assert crepa.companion is not None
    assert all(p.grad is not None and p.grad.any() for p in crepa.companion.parameters())


def test_the_model_is_told_the_level_of_each_cell(transformer: nn.Module) -> None:
    """Levels by cell that are alike within a clip, or apart in the first frame alone, are the plain call."""
    batch = make_batch()
    flow = FlowMatching(FAMILY, SOURCE, FlowSection(), 5)
    noised, sigmas, first = drawn_of(batch).noised, torch.tensor([0.3, 0.8]), torch.tensor([0.1, 0.2])
    cells = sigmas[:, None, None, None].expand(-1, *noised.shape[2:]).clone()
    with torch.no_grad():
        same = flow.predict(transformer, batch, noised, sigmas, None, cells)
        torch.testing.assert_close(same, flow.predict(transformer, batch, noised, sigmas, None), rtol=1e-4, atol=1e-5)
        cells[:, 0] = first[:, None, None]
        apart = flow.predict(transformer, batch, noised, sigmas, None, cells)
        assert not torch.allclose(apart, same, atol=1e-4)
        given = flow.predict(transformer, batch, noised, sigmas, first)
    torch.testing.assert_close(apart, given, rtol=1e-4, atol=1e-5)
