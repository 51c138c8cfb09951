"""What objectives train beside the model: its closed form, and runs with them that continue bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from simpletuner.config.lycoris_file import LycorisFile
from simpletuner.config.sections.guidance import AuxiliarySection, CrepaSection, RolloutSection
from simpletuner.core.errors import UserError
from simpletuner.objectives.auxiliary import Surroundings
from simpletuner.objectives.combined import CombinedObjective, build_further
from simpletuner.objectives.crepa import Projector
from simpletuner.training.checkpoint import restore, save_checkpoint
from simpletuner.training.companions import Companions
from simpletuner.training.fit import fit

LOKR = LycorisFile(algo="lokr", multiplier=1.0, linear_alpha=1, full_matrix=True, factor=4)
FEATURES = 5
SELF_FLOW = {"crepa_feature_source": "self_flow", "crepa_teacher_block_index": 0, "crepa_self_flow_mask_ratio": 0.3}


def with_objectives(run: Any, **crepa: Any) -> Any:
    """The small run with CREPA, the temporal difference and, except beside self-flow, a roll-out."""
    state, family = run.state, run.state.trainable.family
    plain = run.objective
    offset = 0 if crepa.get("crepa_feature_source") == "self_flow" else 2
    further = build_further(
        Surroundings(
            family, None, state.trainable.transformer,  # type: ignore[arg-type]
            CrepaSection(**{"crepa_enabled": True, "crepa_block_index": 0, **crepa}),
            RolloutSection(scheduled_sampling_max_step_offset=offset, scheduled_sampling_probability=0.5,
                           scheduled_sampling_sampler="unipc"),
            AuxiliarySection(temporal_difference_weight=0.1),
            state.seed, state.total_steps, torch.device("cpu"), FEATURES, teach,
            other_levels=lambda batch: plain.draw_sigmas(batch).flip(0), measured=state.trainable.adapter.measured,
        )
    )  # fmt: skip
    modules = {name: one.companion for name, one in further.items() if one.companion is not None}
    state.companions = Companions(modules, 1e-2)
    run.objective = CombinedObjective(plain, list(further.values()), family.block_list)
    return run


def teach(latents: Tensor) -> Tensor:
    """Features [B, F, H, W, E] that follow from the clip alone."""
    mixing = torch.linspace(-1, 1, latents.shape[1] * FEATURES).reshape(latents.shape[1], FEATURES)
    return torch.tanh(latents.float().permute(0, 2, 3, 4, 1) @ mixing)


def train(run: Any, until: int | None = None) -> list[float]:
    return [event.loss for event in fit(run.state, run.objective, stop=lambda: run.state.step == until)]


def companions_of(run: Any) -> dict[str, Tensor]:
    return run.state.companions.tensors(lambda tensor: tensor.detach().clone())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adamw_bf16"},
        {"lycoris": LOKR},
        {"full": True},
        {"batch_size": 2, "accumulation": 2},
        {"crepa": SELF_FLOW},
    ],
    ids=["lora", "lokr", "full", "accumulation", "self-flow"],
)
def test_a_run_with_every_objective_continues_bit_for_bit(
    small_run: Callable[..., Any], tmp_path: Path, settings: dict[str, Any]
) -> None:
    crepa = settings.pop("crepa", {})
    straight, first, second = (with_objectives(small_run(total_steps=6, **settings), **crepa) for _ in range(3))
    begun = companions_of(straight)
    losses = train(straight)
    assert not same(begun, companions_of(straight))
    early = train(first, 3)
    saved = save_checkpoint(first.state, tmp_path, facts=first.facts)
    assert restore(second.state, saved, second.facts) == ()
    assert early + train(second) == losses
    assert same(straight.adapter(), second.adapter())
    assert same(companions_of(straight), companions_of(second))


def test_switched_off_by_its_threshold_it_stays_off_after_a_resume(
    small_run: Callable[..., Any], tmp_path: Path
) -> None:
    low = {"crepa_similarity_threshold": -1.0, "crepa_similarity_ema_decay": 0.0}
    first, second = (with_objectives(small_run(total_steps=6), **low) for _ in range(2))
    train(first, 3)
    saved = save_checkpoint(first.state, tmp_path, facts=first.facts)
    restore(second.state, saved, second.facts)
    events = list(fit(second.state, second.objective, stop=lambda: False))
    assert len(events) == 3
    assert not any(name.startswith("crepa") for event in events for name in event.terms)


def test_trap_56_no_adapter_file_holds_them(small_run: Callable[..., Any], tmp_path: Path) -> None:
    plain, aligned = small_run(), with_objectives(small_run())
    train(aligned, 2)
    files = []
    for number, run in enumerate((plain, aligned)):
        run.state.trainable.save_weights(tmp_path / f"{number}.safetensors", {})
        files.append(load_file(tmp_path / f"{number}.safetensors").keys())
    assert files[0] == files[1]
    saved = save_checkpoint(aligned.state, tmp_path, facts=aligned.facts)
    assert any("projector" in name or "linear" in name for name in load_file(saved / "companions.safetensors"))


def test_switching_an_objective_on_or_off_between_two_starts_is_told(
    small_run: Callable[..., Any], tmp_path: Path
) -> None:
    plain, aligned = small_run(total_steps=6), with_objectives(small_run(total_steps=6))
    train(plain, 2)
    saved = save_checkpoint(plain.state, tmp_path / "plain", facts=plain.facts)
    assert any("begins anew" in text for text in restore(aligned.state, saved, aligned.facts))
    train(aligned, 3)
    saved = save_checkpoint(aligned.state, tmp_path / "aligned", facts=aligned.facts)
    again = small_run(total_steps=6)
    assert any("is off now" in text for text in restore(again.state, saved, again.facts))


def test_the_loss_told_is_the_loss_trained(small_run: Callable[..., Any]) -> None:
    """Figures that are only reported add nothing to it."""
    run = with_objectives(small_run(total_steps=1, batch_size=2))
    (event,) = fit(run.state, run.objective, stop=lambda: False)
    terms = event.terms
    expected = (
        terms["loss"] + 0.5 * terms["crepa_loss"] + 10.0 * terms.get("rollout/drift", 0.0)
        + 0.1 * terms["temporal_difference"]
    )  # fmt: skip
    assert event.loss == pytest.approx(expected, rel=1e-5)
    assert {"crepa_alignment_score", "crepa_similarity_self", "rollout/forwards"} <= set(terms)


def test_trap_57_a_lycoris_network_drops_nothing_out_in_the_roll_out(small_run: Callable[..., Any]) -> None:
    """It is no part of the transformer, whose evaluation mode does not reach it."""
    dropping = LycorisFile(algo="locon", multiplier=1.0, linear_alpha=4, linear_dim=4, dropout=0.5)
    run = with_objectives(small_run(lycoris=dropping, batch_size=4))
    network = run.state.trainable.adapter._network
    modes: list[tuple[bool, bool]] = []
    run.state.trainable.transformer.register_forward_pre_hook(
        lambda *_: modes.append((torch.is_grad_enabled(), any(module.training for module in network.modules())))
    )
    train(run, 3)
    assert (False, False) in modes
    assert set(modes) == {(False, False), (True, True)}


def test_it_is_adamw(small_run: Callable[..., Any]) -> None:
    module, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    twin.load_state_dict(module.state_dict())
    ours, theirs = Companions({"a": module}, 0.1), torch.optim.AdamW(twin.parameters(), lr=0.1, weight_decay=0.0)
    for number in range(3):
        for one in (module, twin):
            one(torch.full((1, 3), float(number))).sum().backward()
        ours.step()
        theirs.step()
        theirs.zero_grad()
    assert torch.equal(module.weight, twin.weight)
    assert ours.trained_count == 8


def test_broken_gradients_are_masked_and_others_are_refused() -> None:
    module = Projector(3, 2, torch.device("cpu"), 0)
    companions = Companions({"crepa": module}, 0.1)
    module(torch.ones(1, 3)).sum().backward()
    companions.mask_gradients(torch.tensor(True))
    assert all(not p.grad.any() for p in module.parameters())
    other = Companions({"crepa": Projector(4, 2, torch.device("cpu"), 0)}, 0.1)
    with pytest.raises(UserError, match="not those of this run"):
        other.load_tensors(companions.tensors(lambda tensor: tensor))
