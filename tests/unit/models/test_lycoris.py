"""LyCORIS adapters on the real small transformer: matched layers, exact files, base untouched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from simpletuner.config.lycoris_file import LycorisFile
from simpletuner.core.errors import UserError
from simpletuner.models.adapters.lycoris import LycorisAdapter

GUIDE = {
    "algo": "lokr", "multiplier": 1.0, "full_matrix": True, "linear_alpha": 1, "factor": 16,
    "apply_preset": {
        "target_module": ["LTXAttention", "FeedForward"],
        "module_algo_map": {"LTXAttention": {"factor": 16}, "FeedForward": {"factor": 8}},
    },
}  # fmt: skip
ALGORITHMS = [
    "lokr", "loha", "full",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("locon", "ia3", "diag-oft", "boft", "glora")),
]  # fmt: skip


@pytest.fixture
def load(miniature: Path) -> Callable[..., nn.Module]:
    from diffusers import LTXVideoTransformer3DModel

    def build(dtype: torch.dtype = torch.float32) -> nn.Module:
        model: nn.Module = LTXVideoTransformer3DModel.from_pretrained(miniature / "transformer", torch_dtype=dtype)
        return model.eval()

    return build


def call(transformer: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    dtype = next(transformer.parameters()).dtype
    width = transformer.config.caption_channels
    output = transformer(
        hidden_states=torch.randn(1, 8, 128, generator=generator).to(dtype),
        encoder_hidden_states=torch.randn(1, 6, width, generator=generator).to(dtype),
        timestep=torch.tensor([500.0]),
        encoder_attention_mask=torch.ones(1, 6),
        num_frames=2, height=2, width=2, return_dict=False,
    )[0]  # fmt: skip
    return output.float()


def attach(transformer: nn.Module, content: dict[str, Any], dtype: torch.dtype = torch.float32) -> LycorisAdapter:
    return LycorisAdapter(transformer, LycorisFile(**content), ["LTXAttention"], dtype=dtype, seed=3)


def train_a_little(transformer: nn.Module, adapter: LycorisAdapter) -> None:
    parameters = list(adapter.parameters().values())
    optimizer = torch.optim.AdamW(parameters, lr=0.05)
    for _ in range(2):
        (call(transformer) - 1.0).square().mean().backward()
        assert all(parameter.grad is not None for parameter in parameters)
        optimizer.step()
        optimizer.zero_grad()


def content_of(algorithm: str) -> dict[str, Any]:
    return {"algo": algorithm, "multiplier": 1.0, "linear_dim": 4, "linear_alpha": 2}


def test_the_guides_file_reaches_attention_and_feed_forward(load: Callable[..., nn.Module]) -> None:
    transformer = load(torch.bfloat16)
    blocks = len(transformer.transformer_blocks)
    adapter = attach(transformer, GUIDE, torch.bfloat16)
    assert len(adapter.layers) == blocks * (8 + 2)
    assert f"{blocks * 8} in LTXAttention" in adapter.describe()
    assert f"{blocks * 2} in FeedForward" in adapter.describe()
    assert {parameter.dtype for parameter in adapter.parameters().values()} == {torch.bfloat16}
    first = {name: tuple(p.shape) for name, p in adapter.parameters().items() if "blocks_0_attn1_to_q." in name}
    # 128 channels cut by a factor of at most 16: 8 x 16 on both sides.
    assert sorted(first.values()) == [(8, 8), (16, 16)]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_starts_as_the_base_learns_and_survives_its_file(
    algorithm: str, load: Callable[..., nn.Module], tmp_path: Path
) -> None:
    base = call(load())
    transformer = load()
    adapter = attach(transformer, content_of(algorithm))
    assert torch.allclose(call(transformer), base, atol=1e-5)
    train_a_little(transformer, adapter)
    trained = call(transformer)
    assert not torch.allclose(trained, base, atol=1e-3)
    with adapter.disabled():
        assert torch.equal(call(transformer), base)
    assert torch.equal(call(transformer), trained)

    adapter.save(tmp_path / "a.safetensors", {"global_step": "2"})
    fresh = load()
    again = attach(fresh, content_of(algorithm))
    again.load_file_tensors(load_file(tmp_path / "a.safetensors"))
    assert adapter.file_is_exact == (algorithm != "full")
    assert (
        torch.equal(call(fresh), trained) if adapter.file_is_exact else torch.allclose(call(fresh), trained, atol=1e-5)
    )
    with safe_open(tmp_path / "a.safetensors", framework="pt") as handle:
        assert f'"algo": "{algorithm}"' in handle.metadata()["lycoris_config"]


@pytest.mark.parametrize("algorithm", ["lokr", "loha", "locon"])
def test_the_librarys_own_loader_reads_the_file(algorithm: str, load: Callable[..., nn.Module], tmp_path: Path) -> None:
    from lycoris import create_lycoris_from_weights

    transformer = load()
    adapter = attach(transformer, content_of(algorithm))
    train_a_little(transformer, adapter)
    adapter.save(tmp_path / "a.safetensors", {})
    other = load()
    network, _ = create_lycoris_from_weights(1.0, str(tmp_path / "a.safetensors"), other)
    network.apply_to()
    assert torch.allclose(call(other), call(transformer), atol=1e-5)


def test_start_values_depend_on_the_seed_alone(load: Callable[..., nn.Module]) -> None:
    one, other = load(), load()
    first = attach(one, content_of("lokr")).parameters()
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    second = attach(other, content_of("lokr")).parameters()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(state, torch.random.get_rng_state())


def test_presets_do_not_leak_from_call_to_call(load: Callable[..., nn.Module]) -> None:
    attach(load(), GUIDE)
    plain = attach(load(), content_of("lokr"))
    assert all("attn" in layer for layer in plain.layers)


def test_targets_that_match_nothing_are_refused(load: Callable[..., nn.Module]) -> None:
    content = {**content_of("lokr"), "apply_preset": {"target_module": ["Attention", "FeedForward"]}}
    with pytest.raises(UserError, match="target_module 'Attention' matches no layer") as caught:
        attach(load(), content)
    assert "LTXAttention" in str(caught.value)


def test_other_settings_do_not_fit_a_file(load: Callable[..., nn.Module], tmp_path: Path) -> None:
    adapter = attach(load(), content_of("loha"))
    adapter.save(tmp_path / "a.safetensors", {})
    other = attach(load(), {**content_of("loha"), "linear_dim": 8})
    with pytest.raises(UserError, match="of another shape"):
        other.load_file_tensors(load_file(tmp_path / "a.safetensors"))


def test_strength_while_shown(load: Callable[..., nn.Module]) -> None:
    transformer = load()
    adapter = LycorisAdapter(
        transformer, LycorisFile(**content_of("locon")), ["LTXAttention"], dtype=torch.float32, seed=0,
        validation_strength=0.0,
    )  # fmt: skip
    base = call(load())
    train_a_little(transformer, adapter)
    with adapter.shown():
        assert torch.allclose(call(transformer), base, atol=1e-5)
    assert not torch.allclose(call(transformer), base, atol=1e-3)


@pytest.mark.parametrize("dropout", ["rank_dropout", "module_dropout"])
def test_nothing_is_dropped_while_shown(load: Callable[..., nn.Module], dropout: str) -> None:
    transformer = load()
    adapter = attach(transformer, {**content_of("lokr"), dropout: 0.5})
    with torch.no_grad():
        for parameter in adapter.parameters().values():
            parameter.add_(0.1)
    with adapter.shown():
        shown = [call(transformer) for _ in range(3)]
    assert all(torch.equal(output, shown[0]) for output in shown)
    trained = [call(transformer) for _ in range(3)]
    assert not all(torch.equal(output, trained[0]) for output in trained)
