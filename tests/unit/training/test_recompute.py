"""The dial of recomputed blocks: any number, evenly spread, equal gradients, fewer kept activations."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import pytest
import torch
from diffusers import LTXVideoTransformer3DModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from simpletuner.config.sections.memory import MemorySection
from simpletuner.runtime.activation_offload import ActivationOffload
from simpletuner.training.recompute import RecomputeDial, spread

LAYERS = 5


def build() -> nn.Module:
    torch.manual_seed(0)
    return LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        num_layers=LAYERS, caption_channels=12,
    ).train()  # fmt: skip


def gradients(model: nn.Module) -> tuple[list[Tensor], int]:
    """Gradients of one step, and bytes that the forward pass kept for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    tokens, text = torch.ones(1, 12, 8), torch.ones(1, 5, 12)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out: Any = model(
            tokens, text, torch.tensor([500.0]), torch.ones(1, 5), num_frames=3, height=2, width=2, return_dict=False
        )
        loss = out[0].square().mean()
    loss.backward()
    return [p.grad for p in model.parameters() if p.grad is not None], sum(kept.values())


@pytest.mark.parametrize("recomputed", range(LAYERS + 1))
def test_gradients_are_the_same_at_every_setting(recomputed: int) -> None:
    expected, most = gradients(build())
    model = build()
    dial = RecomputeDial(model, list(model.transformer_blocks), recomputed)
    found, kept = gradients(model)
    assert dial.recomputed == recomputed
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert (kept < most) == (recomputed > 0)


def test_each_block_more_keeps_less() -> None:
    kept = []
    for recomputed in range(LAYERS + 1):
        model = build()
        RecomputeDial(model, list(model.transformer_blocks), recomputed)
        kept.append(gradients(model)[1])
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == LAYERS + 1


def test_turning_up_ends_at_all() -> None:
    model = build()
    dial = RecomputeDial(model, list(model.transformer_blocks), 0)
    settings = [dial.recomputed]
    while dial.turn_up():
        settings.append(dial.recomputed)
    assert settings == [0, 2, 4, 5]
    assert not dial.turn_up()


@pytest.mark.parametrize("total", [1, 5, 28, 48])
def test_places_are_spread(total: int) -> None:
    for count in range(total + 1):
        places = spread(count, total)
        assert len(set(places)) == count
        assert all(0 <= place < total for place in places)
        assert (total - 1 in places) == (count == total)  # the last block comes last
        gaps = [b - a for a, b in itertools.pairwise(places)]
        assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"gradient_checkpointing": False, "gradient_checkpointing_blocks": 7}, 0),
        ({}, 28),
        ({"gradient_checkpointing_interval": 4}, 7),
        ({"gradient_checkpointing_interval": 0}, 28),
        ({"gradient_checkpointing_interval": 1}, 28),
        ({"gradient_checkpointing_interval": 4, "gradient_checkpointing_blocks": 3}, 3),
        ({"gradient_checkpointing_blocks": 99}, 28),
        ({"gradient_checkpointing_blocks": 0}, 0),
    ],
)
def test_options(settings: dict[str, Any], expected: int) -> None:
    assert MemorySection(**settings).blocks_recomputed(28) == expected


def test_more_blocks_than_there_are_is_our_own_fault() -> None:
    model = build()
    with pytest.raises(ValueError, match="cannot be recomputed"):
        RecomputeDial(model, list(model.transformer_blocks), LAYERS + 1)


def test_kept_attention_is_not_computed_twice() -> None:
    """Same gradients; each attention runs once instead of twice, and its results are all that is kept besides."""
    expected, _ = gradients(build())
    for keeps, passes in ((False, 2), (True, 1)):
        model = build()
        RecomputeDial(model, list(model.transformer_blocks), LAYERS, keeps_attention=keeps)
        with CountedAttention() as counted:
            found, _ = gradients(model)
        assert counted.calls == 2 * LAYERS * passes
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


class CountedAttention(TorchDispatchMode):
    """Counts the forward passes of PyTorch's attention kernels."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        self.calls += name.startswith("aten::_scaled_dot_product") and "backward" not in name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("recomputed", [0, 2, LAYERS])
def test_activations_that_wait_elsewhere(recomputed: int) -> None:
    expected, _ = gradients(build())
    model = build()
    offload = ActivationOffload(torch.device("cpu"), small_bytes=1)
    RecomputeDial(model, list(model.transformer_blocks), recomputed, offload=offload)
    own = {parameter.data_ptr() for parameter in model.parameters()}
    stored: list[Tensor] = []
    offload._pack = lambda tensor, pack=offload._pack: _note(pack(tensor), stored)  # type: ignore[method-assign]
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        found, _ = gradients(model)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    # Twice the same pass moves twice the same bytes; parameters are not among them.
    assert 0 < offload.moved_bytes == sum(tensor.nbytes for tensor in stored)
    assert not own & {tensor.data_ptr() for tensor in stored}


def _note(packed: Any, stored: list[Tensor]) -> Any:
    if not isinstance(packed, Tensor):
        stored.append(packed.stored)
    return packed


@pytest.mark.gpu
def test_on_a_card_activations_come_back_as_they_went(card: torch.device) -> None:
    def gradients(offload: ActivationOffload | None) -> list[torch.Tensor]:
        torch.manual_seed(0)
        layers = torch.nn.ModuleList(torch.nn.Linear(512, 512) for _ in range(6)).to(card)
        given = torch.randn(2048, 512, device=card)
        for _ in range(3):
            layers.zero_grad()
            with contextlib.ExitStack() as stack:
                if offload is not None:
                    offload.begin()
                    stack.enter_context(offload.waiting())
                hidden = given
                for layer in layers:
                    hidden = torch.nn.functional.gelu(layer(hidden))
                loss = hidden.square().mean()
            loss.backward()
        return [parameter.grad for parameter in layers.parameters() if parameter.grad is not None]

    offload = ActivationOffload(card)
    for ours, plain in zip(gradients(offload), gradients(None), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-8)
    assert offload.moved_bytes >= 3 * 6 * 2048 * 512 * 4
