"""DoRA, PiSSA and OLoRA: neutral starts on an untouched base, files that act alike in Diffusers and here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LTXPipeline
from torch import Tensor, nn

from simpletuner.config.sections.adapter import AdapterSection
from simpletuner.core.errors import UserError
from simpletuner.models.adapters import lora
from simpletuner.models.adapters.lora_file import read_lora_file
from simpletuner.models.adapters.lora_start import split_orthonormal, split_principal
from simpletuner.models.ltxvideo.family import FAMILY
from simpletuner.models.precision.quantize import quantize_blocks

CPU = torch.device("cpu")
KINDS: list[dict[str, Any]] = [{"use_dora": True}, {"lora_init_type": "pissa"}, {"lora_init_type": "olora"}]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def load(resolved: Callable[..., Any]) -> Callable[..., nn.Module]:
    return lambda dtype=torch.float32: FAMILY.load_transformer(resolved("0.9.5"), dtype, CPU)


@pytest.fixture
def predict(resolved: Callable[..., Any]) -> Callable[[nn.Module], Tensor]:
    latents, embeds = torch.randn(1, 128, 2, 2, 3, generator=generator()), torch.randn(1, 8, 64, generator=generator())
    mask = torch.ones(1, 8, dtype=torch.bool)

    def call(transformer: nn.Module) -> Tensor:
        with torch.no_grad():
            return FAMILY.predict(
                transformer, resolved("0.9.5"), latents, torch.tensor([0.7]), embeds, mask, torch.tensor([25.0])
            )

    return call


def attach(transformer: nn.Module, seed: int = 0, dtype: torch.dtype = torch.float32, **settings: Any) -> nn.Module:
    targets = FAMILY.adapter_targets(transformer, "all")
    section = AdapterSection(**{"lora_rank": 4, "lora_alpha": 3.0, **settings})
    lora.attach_lora(transformer, targets, section, dtype, seed)
    return transformer


def disturb(transformer: nn.Module) -> None:
    with torch.no_grad():
        for number, parameter in enumerate(lora.adapter_parameters(transformer).values()):
            parameter.mul_(1.1).add_(0.05 * torch.randn(parameter.shape, generator=generator(number)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_starts_as_the_base_and_leaves_it_alone(
    load: Callable[..., nn.Module], predict: Callable[[nn.Module], Tensor], kind: dict[str, Any], dtype: torch.dtype
) -> None:
    base = predict(load())
    transformer = attach(load(), dtype=dtype, **kind)
    started = predict(transformer)
    # DoRA's lengths cancel exactly; B A - B0 A0 leaves the rounding of a sum.
    assert torch.equal(started, base) if "use_dora" in kind else torch.allclose(started, base, atol=1e-5)
    parameters = lora.adapter_parameters(transformer)
    assert {id(p) for p in transformer.parameters() if p.requires_grad} == {id(p) for p in parameters.values()}
    disturb(transformer)
    assert not torch.allclose(predict(transformer), base, atol=1e-2)
    with lora.adapter_disabled(transformer):
        assert torch.equal(predict(transformer), base)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_start_depends_on_the_seed_alone(load: Callable[..., nn.Module], kind: dict[str, Any]) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = lora.adapter_tensors(attach(load(), 3, **kind))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = lora.adapter_tensors(attach(load(), 3, **kind))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("shape", [(48, 32), (32, 200), (200, 300)])
def test_pissa_takes_the_largest_singular_parts(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=generator()) @ torch.diag(0.97 ** torch.arange(shape[1]))
    down, up = split_principal(weight, 8, 0.75, generator(1))
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    best = left[:, :8] @ torch.diag(values[:8]) @ right[:8]
    error = torch.linalg.norm(weight - 0.75 * (up @ down).double()) / torch.linalg.norm(weight.double() - best)
    assert 1 - 1e-6 <= error <= 1 + 1e-4
    torch.testing.assert_close(down.norm(dim=1) ** 2 * 0.75, values[:8].float(), rtol=1e-3, atol=0)


def test_olora_takes_orthonormal_columns_and_small_layers_get_ordinary_ranks() -> None:
    weight = torch.randn(6, 10, generator=generator())
    down, up = split_orthonormal(weight, 8, generator(1))
    torch.testing.assert_close(up @ down, weight, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(up.T @ up, torch.diag(torch.tensor([1.0] * 6 + [0.0] * 2)), rtol=0, atol=1e-5)
    assert down[6:].abs().min() > 0


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_file_acts_alike_in_diffusers_merged_and_live(
    load: Callable[..., nn.Module], predict: Callable[[nn.Module], Tensor], kind: dict[str, Any], tmp_path: Path
) -> None:
    transformer = attach(load(), **kind)
    disturb(transformer)
    expected = predict(transformer)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    FAMILY.save_adapter(path, lora.adapter_tensors(transformer), lora.adapter_config(transformer), {})
    fresh = load()
    pipe = LTXPipeline(scheduler=None, vae=None, text_encoder=None, tokenizer=None, transformer=fresh)
    pipe.load_lora_weights(str(path))
    torch.testing.assert_close(predict(fresh), expected, rtol=0, atol=0 if "use_dora" in kind else 1e-4)
    file, merged = read_lora_file(path, FAMILY), load()
    assert file.uses_dora == ("use_dora" in kind)
    assert {layer.lora_rank for layer in file.layers.values()} == ({4} if "use_dora" in kind else {8})
    with torch.no_grad():
        for name, layer in file.layers.items():
            weight = merged.get_submodule(name).weight
            weight.copy_(layer.merged(weight))
    torch.testing.assert_close(predict(merged), expected, rtol=0, atol=1e-4)


def test_a_start_at_the_weights_needs_them_in_full(load: Callable[..., nn.Module]) -> None:
    transformer = load(torch.bfloat16)
    assert quantize_blocks(transformer, "int8-torchao", FAMILY.block_list) > 0
    with pytest.raises(UserError, match="lora_init_type pissa on a quantized base model"):
        attach(transformer, lora_init_type="pissa")


def test_dora_trains_through_a_quantized_base(
    load: Callable[..., nn.Module], predict: Callable[[nn.Module], Tensor]
) -> None:
    transformer = load(torch.bfloat16)
    quantize_blocks(transformer, "int8-torchao", FAMILY.block_list)
    base = predict(transformer)
    attach(transformer, use_dora=True)
    assert torch.equal(predict(transformer), base)


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_the_file_brings_back_what_was_started_with(
    load: Callable[..., nn.Module], predict: Callable[[nn.Module], Tensor], kind: str
) -> None:
    trained, other = attach(load(), lora_init_type=kind), attach(load(), 5, lora_init_type=kind)
    disturb(trained)
    with torch.no_grad():
        for module in other.modules():
            if isinstance(module, lora.LoraLayer):
                module.lora_B[lora.START].weight.add_(0.1)
    lora.load_adapter_tensors(other, lora.adapter_tensors(trained))
    assert torch.equal(predict(other), predict(trained))
