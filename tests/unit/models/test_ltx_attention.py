"""Attention by each kernel: Diffusers' numbers, masks that are obeyed, gradients that are right."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_ltx import LTXVideoAttnProcessor, LTXVideoRotaryPosEmbed
from torch import Tensor
from torch.nn import functional

from simpletuner.config.catalogs.attention import ATTENTION
from simpletuner.core.errors import UserError
from simpletuner.models.ltxvideo import attention
from simpletuner.models.ltxvideo.attention import attend, choose_attention
from simpletuner.models.ltxvideo.family import FAMILY

CPU = torch.device("cpu")


def parts(dtype: torch.dtype, queries: int = 24, keys: int = 16) -> tuple[list[Tensor], Tensor]:
    """Query [2, S, 2, 16], key and value [2, T, 2, 16] that want gradients, and a mask [2, 1, 1, T]."""
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randn(2, n, 2, 16, generator=generator).to(dtype).requires_grad_() for n in (queries, keys, keys)]
    mask = torch.zeros(2, 1, 1, keys, dtype=dtype)
    mask[0, ..., 9:] = -10000.0
    return drawn, mask


def gradients(given: list[Tensor], mask: Tensor | None, by: Any) -> list[Tensor]:
    for tensor in given:
        tensor.grad = None
    by(*given, mask).backward(torch.ones(2, 24, 2, 16, dtype=given[0].dtype, device=given[0].device))
    return [tensor.grad for tensor in given if tensor.grad is not None]


def exact(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    scores = torch.einsum("bshd,bthd->bhst", query, key) / 4.0
    return torch.einsum("bhst,bthd->bshd", (scores if mask is None else scores + mask).softmax(-1), value)


@pytest.mark.parametrize("name", ["diffusers", "native-math"])
@pytest.mark.parametrize("masked", [True, False])
def test_numbers_and_gradients(name: str, masked: bool) -> None:
    given, mask = parts(torch.bfloat16)
    mask = mask if masked else None  # type: ignore[assignment]
    double = [tensor.detach().double().requires_grad_() for tensor in given]
    found = attend(*given, mask, ATTENTION[name])
    torch.testing.assert_close(found.double(), exact(*double, mask), atol=2e-2, rtol=2e-2)
    truth = gradients(double, mask, exact)
    for own, true in zip(gradients(given, mask, lambda *a: attend(*a, ATTENTION[name])), truth, strict=True):
        assert (own.double() - true).norm() / true.norm() < 5e-3  # a bfloat16 number itself is up to 4e-3 off


def test_wide_backward_is_the_nearer_one_and_the_forward_pass_the_same() -> None:
    given, mask = parts(torch.bfloat16)
    double = [tensor.detach().double().requires_grad_() for tensor in given]

    def plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        swapped = [part.transpose(1, 2) for part in (query, key, value)]
        return functional.scaled_dot_product_attention(*swapped, mask).transpose(1, 2)

    assert torch.equal(attend(*given, mask, ATTENTION["diffusers"]), plain(*given, mask))
    truth = gradients(double, mask, exact)
    own = gradients(given, mask, lambda *a: attend(*a, ATTENTION["diffusers"]))
    other = gradients(given, mask, plain)
    far = [
        sum(float((one.double() - true).norm()) for one, true in zip(some, truth, strict=True)) for some in (own, other)
    ]
    assert far[0] < far[1]


def test_layers_compute_what_diffusers_computes(resolved: Any) -> None:
    model: Any = FAMILY.load_transformer(resolved("0.9.5"), torch.float32, CPU)
    layer, generator = model.transformer_blocks[0].attn2, torch.Generator().manual_seed(0)
    tokens, text = (torch.randn(2, n, layer.query_dim, generator=generator) for n in (12, 8))
    mask = torch.zeros(2, 1, 8)
    mask[1, :, 5:] = -10000.0
    torch.testing.assert_close(layer(tokens, text, mask), LTXVideoAttnProcessor()(layer, tokens, text, mask))
    coordinates = torch.rand(2, 3, 12)
    places = LTXVideoRotaryPosEmbed.forward(model.rope, tokens, video_coords=coordinates)
    theirs = LTXVideoAttnProcessor()(model.transformer_blocks[0].attn1, tokens, image_rotary_emb=places)
    own = model.transformer_blocks[0].attn1(tokens, image_rotary_emb=model.rope(tokens, video_coords=coordinates))
    torch.testing.assert_close(own, theirs)


def test_kernels_are_asked_only_for_what_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cross-attention of one without masks, and training by one without gradients, are PyTorch's."""
    asked: list[tuple[str, bool]] = []

    def dispatch(query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor | None, backend: str) -> Tensor:
        asked.append((backend, attn_mask is not None))
        return query

    monkeypatch.setattr(attention, "dispatch_attention_fn", dispatch)
    given, mask = parts(torch.bfloat16, queries=16)
    assert attend(*given, mask, ATTENTION["flash-attn"]) is not given[0]
    assert attend(*given, None, ATTENTION["flash-attn"]) is given[0]
    assert asked == [("flash", False)]
    sage = attention._Processor("sageattention")
    assert (sage._chosen.target, sage._trained.target) == ("sage", "")
    assert all(not row.masks for row in ATTENTION._rows.values() if row.package)


def test_a_missing_package_is_named(resolved: Any) -> None:
    model = FAMILY.empty_transformer(resolved("0.9.5"))
    assert not ATTENTION["flash-attn-3"].is_installed
    with pytest.raises(UserError, match=r"flash_attn_interface.*hopper"):
        choose_attention(model, "flash-attn-3")


def test_mechanism_reaches_the_layers(resolved: Any) -> None:
    source = dataclasses.replace(resolved("0.9.5"), attention="native-math")
    model: Any = FAMILY.load_transformer(source, torch.float32, CPU)
    assert {block.attn1.processor._chosen.target for block in model.transformer_blocks} == {"MATH"}


@pytest.mark.gpu
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "name", [name for name in ATTENTION if ATTENTION[name].trains and ATTENTION[name].is_installed]
)
def test_on_a_card_every_kernel_that_trains_has_right_gradients(card: torch.device, name: str, masked: bool) -> None:
    given, mask = parts(torch.bfloat16)
    double = [tensor.detach().double().requires_grad_() for tensor in given]
    there = [tensor.detach().to(card).requires_grad_() for tensor in given]
    shown = mask.to(card) if masked else None
    row = ATTENTION[name]
    if not row.is_installed:
        pytest.skip(f"{row.package} is not installed")
    if card.type == "cpu" and row.target not in ("", "MATH"):
        pytest.skip(f"{name} is not for the CPU")
    truth = gradients(double, mask if masked else None, exact)
    for own, true in zip(gradients(there, shown, lambda *a: attend(*a, row)), truth, strict=True):
        assert (own.cpu().double() - true).norm() / true.norm() < 2e-2
