"""Norms, rotation and joint LoRA products as one node each: the plain formulas' numbers, less of everything else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import LTXVideoTransformer3DModel
from diffusers.models.transformers.transformer_ltx import LTXVideoRotaryPosEmbed, apply_rotary_emb
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from simpletuner.config.sections.adapter import AdapterSection
from simpletuner.models.adapters import joint
from simpletuner.models.adapters.joint import project
from simpletuner.models.adapters.lora import adapter_disabled, attach_lora
from simpletuner.models.ltxvideo import norms, rotation
from simpletuner.models.ltxvideo.attention import choose_attention
from simpletuner.models.ltxvideo.frame_times import accept_frame_times
from simpletuner.models.ltxvideo.norms import modulated, normed
from simpletuner.models.ltxvideo.positions import token_coordinates
from simpletuner.models.ltxvideo.rotation import RotaryTables, Turns, rotated
from simpletuner.models.ltxvideo.transformer import adapter_targets, predict

WIDTH, TOKENS = 44, 12  # 44 is no multiple of 6: the tables begin with turns by nothing
PLAIN = LTXVideoRotaryPosEmbed(dim=WIDTH)
CPU = torch.device("cpu")


def drawn(*shape: int, size: float = 1.0, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    numbers = size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return numbers.to(dtype).requires_grad_()


def gradients(compute: Callable[..., Tensor], *given: Tensor) -> list[Tensor]:
    """The result and the gradient of each that wants one."""
    given = tuple(tensor.detach().requires_grad_(tensor.requires_grad) for tensor in given)
    result = compute(*given)
    result.backward(drawn(*result.shape, seed=9).to(result.dtype))
    return [result.detach(), *(tensor.grad for tensor in given if tensor.grad is not None)]


def coordinates(*rates: float) -> Tensor:
    return token_coordinates("causal", 2, 2, 3, torch.tensor(rates))


def plainly_normed(tokens: Tensor, weight: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    return tokens * torch.rsqrt(tokens.square().mean(-1, keepdim=True) + eps) * weight + shift


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, TOKENS], ids=["a row per clip", "a row per token"])
def test_modulation(dtype: torch.dtype, rows: int) -> None:
    given = (
        drawn(2, TOKENS, WIDTH, size=3.0, dtype=dtype),
        *(drawn(2, rows, WIDTH, size=0.3, dtype=dtype, seed=seed) for seed in (1, 2)),
    )
    exact = gradients(lambda x, scale, shift: plainly_normed(x, 1 + scale, shift), *(part.double() for part in given))
    own = gradients(lambda *parts: modulated(*parts, 1e-5), *given)
    assert [part.dtype for part in own] == [dtype] * 4
    for found, wanted in zip(own, exact, strict=True):
        assert (found.double() - wanted).norm() / wanted.norm() < (1e-6 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("turned", [True, False])
def test_norms_of_queries_and_keys(dtype: torch.dtype, turned: bool) -> None:
    turns = RotaryTables(PLAIN, shares=True)(torch.empty(0), video_coords=coordinates(25.0, 8.0)) if turned else None
    tables = [table.double() for table in PLAIN(torch.empty(0), video_coords=coordinates(25.0, 8.0))]
    norm = nn.RMSNorm(WIDTH, eps=1e-5).to(dtype)

    def ours(tokens: Tensor, weight: Tensor) -> Tensor:
        norm.weight = nn.Parameter(weight.detach())
        result = normed(tokens, norm, turns)
        norm.weight.register_hook(lambda gradient: setattr(weight, "grad", gradient))
        return result

    def plain(tokens: Tensor, weight: Tensor) -> Tensor:
        result = functional.rms_norm(tokens, (WIDTH,), weight, 1e-5)
        # The library's function would go through float32.
        pairs = torch.stack([-result[..., 1::2], result[..., ::2]], dim=-1).flatten(2)
        return result * tables[0] + pairs * tables[1] if turned else result

    given = drawn(2, TOKENS, WIDTH, size=3.0, dtype=dtype), (1 + drawn(WIDTH, size=0.1, seed=1)).to(dtype).detach()
    given[1].requires_grad_()
    exact = gradients(plain, *(part.detach().double().requires_grad_() for part in given))
    for found, wanted in zip(gradients(ours, *given), exact, strict=True):
        assert found.dtype == dtype
        assert (found.double() - wanted).norm() / wanted.norm() < (1e-6 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("compiling", [True, False])
def test_ways_for_other_devices_and_the_compiler(monkeypatch: pytest.MonkeyPatch, compiling: bool) -> None:
    """Where there is one kernel for the norm, and where complex numbers are not to be had."""
    turns = RotaryTables(PLAIN, shares=True)(torch.empty(0), video_coords=coordinates(25.0))
    tokens, scale, shift = (
        drawn(1, *size, seed=seed) for seed, size in enumerate([(TOKENS, WIDTH)] + 2 * [(1, WIDTH)])
    )
    norm = nn.RMSNorm(WIDTH, eps=1e-5).requires_grad_(False)
    ways: list[Callable[..., Tensor]] = [
        lambda x, *rows: modulated(x, *rows, 1e-5),
        lambda x, *_: normed(x, norm, turns),
    ]
    here = [gradients(way, tokens, scale, shift) for way in ways]
    monkeypatch.setattr(norms, "_is_one_node", lambda tokens: False)
    if compiling:
        monkeypatch.setattr(rotation.torch.compiler, "is_compiling", lambda: True)
    for found, expected in zip([gradients(way, tokens, scale, shift) for way in ways], here, strict=True):
        torch.testing.assert_close(found, expected)


def test_turns_are_diffusers_tables_and_its_rotation() -> None:
    tables = RotaryTables(PLAIN, shares=True)
    for rates in ([25.0, 8.0], [25.0, 25.0]):
        cosines, sines = PLAIN(torch.empty(0), video_coords=coordinates(*rates))
        turns = tables(torch.empty(0), video_coords=coordinates(*rates))
        assert torch.equal(turns.there[..., 0].expand(2, -1, -1).repeat_interleave(2, -1), cosines)
        assert torch.equal(turns.there[..., 1].expand(2, -1, -1).repeat_interleave(2, -1), sines)
        assert torch.equal(turns.back, turns.there * torch.tensor([1.0, -1.0]))
        given = drawn(2, TOKENS, WIDTH)
        found = gradients(lambda tokens, turns=turns: rotated(tokens, turns), given)
        theirs = gradients(lambda tokens, both=(cosines, sines): apply_rotary_emb(tokens, both), given)
        torch.testing.assert_close(found, theirs)
    by_grid: dict[str, Any] = {"num_frames": 2, "height": 2, "width": 3, "rope_interpolation_scale": (8 / 25, 32, 32)}
    found = tables(torch.empty(1, 1), **by_grid)
    assert torch.equal(found.there[..., 0].repeat_interleave(2, -1), PLAIN(torch.empty(1, 1), **by_grid)[0])


def test_tables_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = RotaryTables(PLAIN, shares=True)
    empty = torch.empty(0)

    def made(*rates: float) -> Turns:
        return tables(empty, video_coords=coordinates(*rates))

    with torch.inference_mode():  # a video that is generated first
        first = made(25.0, 25.0)
    assert made(25.0, 25.0) is first
    assert copy.deepcopy(tables)(empty, video_coords=coordinates(25.0, 25.0)) is not first
    assert first.there.shape == (1, TOKENS, WIDTH // 2, 2)
    rotated(drawn(2, TOKENS, WIDTH), first).sum().backward()
    assert made(25.0, 8.0).there.shape[0] == 2
    assert made(25.0, 25.0) is first
    # Two sets of tables are kept, the one that is used longest ago goes.
    monkeypatch.setattr(rotation, "KEPT_BYTES", first.nbytes)
    second = made(8.0)
    assert made(25.0, 25.0) is first
    made(30.0)
    assert made(25.0, 25.0) is first
    assert made(8.0) is not second
    # Compiled blocks get one shape whatever the rates are.
    alike = RotaryTables(PLAIN, shares=False)
    assert {alike(empty, video_coords=coordinates(*rates)).there.stride() for rates in ((25.0, 25.0), (25.0, 8.0))} == {
        (TOKENS * WIDTH, WIDTH, 2, 1)
    }


def test_rates_on_a_device_are_not_looked_at() -> None:
    rates = torch.full((2,), 25.0, device="meta")  # whoever reads one raises
    assert token_coordinates("causal", 2, 2, 3, rates).shape == (2, 3, TOKENS)
    assert token_coordinates("causal", 2, 2, 3, torch.full((2,), 25.0), torch.device("meta")).device.type == "meta"


# LoRA --------------------------------------------------------------------------------------------


class Layers(nn.Module):
    """Queries, keys, values of one input."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.to_q, self.to_k, self.to_v = nn.Linear(24, 16, bias), nn.Linear(24, 16, bias), nn.Linear(24, 20, bias)

    def add_adapter(self, config: Any, adapter_name: str) -> None:
        from peft import inject_adapter_in_model

        inject_adapter_in_model(config, self, adapter_name)


def with_lora(dtype: torch.dtype = torch.float32, bias: bool = True, **settings: Any) -> Layers:
    layers = Layers(bias).to(dtype)
    section = AdapterSection(**{"lora_rank": 4, "lora_alpha": 6, "lora_dropout": 0.0, **settings})
    attach_lora(layers, ["to_q", "to_k", "to_v"], section, dtype, 1)
    for number, (name, parameter) in enumerate(layers.named_parameters()):
        if "lora_B" in name:
            parameter.data.copy_(drawn(*parameter.shape, size=0.3, seed=number))
    return layers


def of_step(layers: Layers, count: int, way: Callable[..., Any], tokens: Tensor) -> list[Tensor]:
    """Outputs and gradients, of the tokens first."""
    layers.zero_grad()
    own = [layers.to_q, layers.to_k, layers.to_v][:count]
    tokens = tokens.detach().requires_grad_(tokens.requires_grad)
    outputs = way(own, tokens)
    torch.autograd.backward(list(outputs), [drawn(*part.shape, seed=5).to(part.dtype) for part in outputs])
    found = [*outputs, *(parameter.grad for parameter in layers.parameters() if parameter.grad is not None)]
    return [part.detach().clone() for part in ([tokens.grad, *found] if tokens.grad is not None else found)]


def one_by_one(layers: list[nn.Module], tokens: Tensor) -> list[Tensor]:
    return [layer(tokens) for layer in layers]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("count", "bias"), [(1, True), (2, False), (3, True)])
def test_joint_products(dtype: torch.dtype, count: int, bias: bool) -> None:
    layers, double = with_lora(dtype, bias), with_lora(torch.float64, bias)
    for name, value in layers.state_dict().items():
        double.state_dict()[name].copy_(value)
    given = drawn(2, 5, 24, dtype=dtype)
    exact = of_step(double, count, one_by_one, given.double())
    own, plain = (of_step(layers, count, way, given) for way in (project, one_by_one))
    assert len(own) == 1 + 3 * count
    far = [
        [float((o.double() - e).norm() / e.norm()) for o, e in zip(found, exact, strict=True)] for found in (own, plain)
    ]
    assert max(far[0]) < (1e-6 if dtype == torch.float32 else 6e-3)
    assert sum(far[0]) < 1.05 * sum(far[1])  # rounded once, not after each summand
    assert [part.dtype for part in own] == [part.dtype for part in plain]
    # The text needs no gradient.
    torch.testing.assert_close(of_step(layers, count, project, given.detach()), own[1:])


@pytest.mark.parametrize(
    "case", ["dropout", "dora", "float32 adapter", "two adapters", "hook", "disabled", "full", "autocast", "merged"]
)
def test_other_layers_are_called(case: str) -> None:
    settings = {
        "dropout": {"lora_dropout": 0.5},
        "dora": {"use_dora": True},
        "two adapters": {"lora_init_type": "olora"},
    }
    layers = with_lora(torch.bfloat16, **settings.get(case, {}))
    calls: list[nn.Module] = []
    match case:
        case "float32 adapter":
            for name, parameter in layers.named_parameters():
                parameter.data = parameter.data.float() if "lora" in name else parameter.data
        case "hook":
            layers.to_q.lora_A["default"].register_forward_hook(lambda module, *_: calls.append(module))
        case "full":
            layers.requires_grad_(True)
        case "merged":
            layers.to_q.merge()
    tokens = drawn(2, 5, 24, dtype=torch.bfloat16)
    assert joint._matrices(layers.to_v, tokens) is not None or case not in ("hook", "merged")
    if case == "disabled":
        with adapter_disabled(layers):
            assert joint._matrices(layers.to_q, tokens) is None
        return
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        assert joint._matrices(layers.to_q, tokens) is None
        torch.manual_seed(3)
        found = project([layers.to_q, layers.to_v], tokens)
        torch.manual_seed(3)
        assert all(map(torch.equal, found, one_by_one([layers.to_q, layers.to_v], tokens)))
    assert len(calls) == 2 * (case == "hook")
    if case == "dropout":  # nothing is left out where nothing is trained
        assert joint._matrices(layers.eval().to_q, tokens) is not None


# Operations --------------------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """Counts what is neither a view nor an allocation."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (
            func.is_view or func.overloadpacket.__name__.startswith(("empty", "new_empty", "_unsafe_view"))
        )
        return func(*args, **(kwargs or {}))


def operations(layers: int) -> int:
    """Of the second pass, forward and backward, over a model of so many blocks with a LoRA on its attention."""
    shape = {"num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32, "caption_channels": 16}
    model = LTXVideoTransformer3DModel(num_layers=layers, **shape).to(torch.bfloat16)
    accept_frame_times(model)
    choose_attention(model, "diffusers")
    settings = AdapterSection(lora_rank=4, lora_dropout=0.0)
    attach_lora(model, adapter_targets(model, "attention"), settings, torch.bfloat16, 0)
    mask, rates, source = (
        torch.ones(2, 8, dtype=torch.bool),
        torch.full((2,), 25.0),
        SimpleNamespace(positions="causal", compiled=False),
    )
    given = torch.randn(2, 128, 2, 2, 3), torch.rand(2), torch.randn(2, 8, 16), mask, rates
    predict(model, source, *given).sum().backward()  # type: ignore[arg-type]
    with Operations() as counted:
        predict(model, source, *given).sum().backward()  # type: ignore[arg-type]
    return counted.count


def test_a_block_takes_few_operations() -> None:
    """Plain ones take over 300; `benchmarks/step_operations.py` tells which."""
    one, two = operations(1), operations(2)
    assert two - one <= 245
    assert one - (two - one) <= 40  # everything around the blocks; the tables alone would be 20
