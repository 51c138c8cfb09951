"""LyCORIS adapters on the real small transformer: matched layers, exact files, base untouched."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from simpletuner.config.catalogs.lycoris_kinds import KINDS
from simpletuner.config.lycoris_file import LycorisFile
from simpletuner.core.errors import UserError
from simpletuner.models.adapter_cost import LayerKind, lycoris_layers
from simpletuner.models.adapters.lycoris import LycorisAdapter
from simpletuner.models.ltxvideo.cost import LTXCostSource

GUIDE = {
    "algo": "lokr", "multiplier": 1.0, "full_matrix": True, "linear_alpha": 1, "factor": 16,
    "apply_preset": {
        "target_module": ["LTXAttention", "FeedForward"],
        "module_algo_map": {"LTXAttention": {"factor": 16}, "FeedForward": {"factor": 8}},
    },
}  # fmt: skip
F32, BF16 = torch.float32, torch.bfloat16
EVERY_DAY = ("lokr", "full", "dylora", "glora")


def by_price(names: Iterable[Any]) -> list[Any]:
    """Those of every day, the others marked slow."""
    return [name if name in EVERY_DAY else pytest.param(name, marks=pytest.mark.slow) for name in names]


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


def shown(transformer: nn.Module, adapter: LycorisAdapter) -> Tensor:
    with adapter.shown(), torch.no_grad():
        return call(transformer)


def train_a_little(transformer: nn.Module, adapter: LycorisAdapter, *, parts: bool = False) -> None:
    """Two steps; all trained tensors must get a gradient, unless only `parts` of them take part in a step."""
    parameters = list(adapter.parameters().values())
    optimizer = torch.optim.AdamW(parameters, lr=0.05)
    for _ in range(2):
        (call(transformer) - 1.0).square().mean().backward()
        assert parts or all(parameter.grad is not None for parameter in parameters)
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


# Base and trained format: the second is that of a float32 optimizer on a bfloat16 model.
@pytest.mark.parametrize(("base_format", "trained_format"), [(F32, F32), (BF16, F32), (BF16, BF16)])
@pytest.mark.parametrize("algorithm", by_price(KINDS))
def test_starts_as_the_base_learns_and_survives_its_file(
    algorithm: str, base_format: torch.dtype, trained_format: torch.dtype, load: Callable[..., nn.Module],
    tmp_path: Path,
) -> None:  # fmt: skip
    base = call(load(base_format))
    transformer = load(base_format)
    adapter = attach(transformer, content_of(algorithm), trained_format)
    assert torch.allclose(call(transformer), base, atol=1e-5)
    train_a_little(transformer, adapter, parts=algorithm == "dylora")
    trained = shown(transformer, adapter)
    assert not torch.allclose(trained, base, atol=1e-3)
    with adapter.disabled():
        assert torch.equal(call(transformer), base)
    assert torch.equal(shown(transformer, adapter), trained)

    adapter.save(tmp_path / "a.safetensors", {"global_step": "2"})
    fresh = load(base_format)
    again = attach(fresh, content_of(algorithm), trained_format)
    again.load_file_tensors(load_file(tmp_path / "a.safetensors"))
    assert adapter.file_is_exact == (algorithm != "full")
    # The difference of two bfloat16 weights is exact in the file, that of two float32 ones is not.
    exact = adapter.file_is_exact or trained_format is BF16
    found = shown(fresh, again)
    assert torch.equal(found, trained) if exact else torch.allclose(found, trained, atol=1e-5)
    again.load_file_tensors(load_file(tmp_path / "a.safetensors"))
    assert torch.equal(shown(fresh, again), found)  # loading puts in place, it does not add
    with safe_open(tmp_path / "a.safetensors", framework="pt") as handle:
        assert f'"algo": "{algorithm}"' in handle.metadata()["lycoris_config"]


@pytest.mark.parametrize("algorithm", by_price(["lokr", "loha", "locon", "glora"]))
def test_a_trained_scalar_makes_the_file_inexact_but_equal(
    algorithm: str, load: Callable[..., nn.Module], tmp_path: Path
) -> None:
    content = {**content_of(algorithm), "use_scalar": True}
    transformer = load()
    adapter = attach(transformer, content)
    train_a_little(transformer, adapter)
    assert not adapter.file_is_exact
    adapter.save(tmp_path / "a.safetensors", {})
    fresh = load()
    again = attach(fresh, content)
    again.load_file_tensors(load_file(tmp_path / "a.safetensors"))
    torch.testing.assert_close(call(fresh), call(transformer), rtol=0, atol=1e-5)
    assert all(float(p.detach()) == 1.0 for name, p in again.parameters().items() if name.endswith("scalar"))


def test_dylora_trains_a_drawn_part_of_its_rank_and_shows_all_of_it(load: Callable[..., nn.Module]) -> None:
    transformer = load()
    adapter = attach(transformer, {**content_of("dylora"), "linear_dim": 8, "block_size": 2, "linear_alpha": 3})
    trained: set[str] = set()
    for draw in range(4):
        torch.manual_seed(draw)
        random.seed(0)  # the library's own source of draws, which nobody restores
        call(transformer).square().mean().backward()
        parts = {name.rpartition(".")[2] for name, p in adapter.parameters().items() if p.grad is not None}
        heard = {name for name, p in adapter.parameters().items() if p.grad is not None and "0_attn1_to_q" in name}
        assert len(heard) == 2  # one block of each matrix
        trained |= parts
        for parameter in adapter.parameters().values():
            parameter.grad = None
    assert len(trained) > 1
    with torch.no_grad():
        for parameter in adapter.parameters().values():
            parameter.add_(0.1)
    layer: Any = transformer.transformer_blocks[0].attn1.to_q
    network = adapter._network
    lora = next(lora for lora in network.loras if lora.org_module[0] is layer)
    up, down = torch.cat(list(lora.up_list), 1), torch.cat(list(lora.down_list))
    x = torch.randn(2, layer.in_features, generator=torch.Generator().manual_seed(1))
    with adapter.shown(), torch.no_grad():
        wanted = nn.functional.linear(x, layer.weight + 3 / 4 * up @ down, layer.bias)
        torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-5)


def test_lokr_begins_near_the_base_with_a_norm(load: Callable[..., nn.Module]) -> None:
    def change(content: dict[str, Any]) -> tuple[Tensor, Tensor]:
        transformer = load()
        adapter = LycorisAdapter(
            transformer, LycorisFile(**content), ["LTXAttention"], dtype=F32, seed=1, start_norm=0.01
        )
        layer = transformer.transformer_blocks[0].attn1.to_q
        units = torch.eye(layer.in_features)
        with torch.no_grad():  # not the library's own difference, which has alpha / dimension twice
            now = layer(units)
            with adapter.disabled():
                return (now - layer(units)).T, layer.weight

    whole, weight = change({"algo": "lokr", "multiplier": 1.0, "linear_alpha": 1, "full_matrix": True, "factor": 2})
    assert whole.std().item() == pytest.approx(0.01 * weight.std().item(), rel=0.1)
    assert whole.mean().item() == pytest.approx(0.01 * weight.mean().item(), abs=0.001 * weight.std().item())
    rows, columns = whole.shape
    quarter = whole[: rows // 2, : columns // 2]  # the first factor is all ones
    torch.testing.assert_close(quarter, whole[rows // 2 :, columns // 2 :], rtol=0, atol=1e-6)
    thin, weight = change({"algo": "lokr", "multiplier": 1.0, "linear_alpha": 2, "linear_dim": 4, "factor": 2})
    assert thin.std().item() == pytest.approx(0.01 * weight.std().item(), rel=0.3)


SIZES = [
    {"algo": "lokr", "linear_dim": 2, "factor": 4}, {"algo": "lokr", "linear_dim": 1, "factor": 5},
    {"algo": "lokr", "full_matrix": True, "factor": 6, "use_scalar": True},
    {"algo": "lokr", "linear_dim": 1, "decompose_both": True, "dora_wd": True},
    {"algo": "lokr", "linear_dim": 1, "unbalanced_factorization": True, "factor": 3},
    {"algo": "loha", "linear_dim": 3, "dora_wd": True, "wd_on_output": False}, {"algo": "locon", "linear_dim": 3},
    {"algo": "dylora", "linear_dim": 8, "block_size": 2}, {"algo": "full"}, {"algo": "ia3"},
    {"algo": "ia3", "train_on_input": True}, {"algo": "glora", "linear_dim": 3},
    {"algo": "diag-oft", "linear_dim": 5, "rescaled": True}, {"algo": "boft", "linear_dim": 6},
    {"algo": "boft", "linear_dim": 7, "rescaled": True},
]  # fmt: skip


@pytest.mark.parametrize("content", SIZES, ids=str)
def test_the_forecast_counts_what_the_library_makes(content: dict[str, Any]) -> None:
    class LTXAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for number, shape in enumerate([(24, 32), (32, 32), (64, 24), (48, 96)]):
                setattr(self, f"to_{number}", nn.Linear(*shape))

    model = nn.Sequential(LTXAttention())
    adapter = attach(model, {"multiplier": 1.0, "linear_alpha": 1, **content})
    counted = sum(parameter.numel() for parameter in adapter.parameters().values())
    kind = LayerKind.of(content, {})
    layers = [model.get_submodule(name) for name in adapter.layers]
    assert counted == sum(kind.values(layer.in_features, layer.out_features) for layer in layers)


@pytest.mark.parametrize("algorithm", by_price(["lokr", "loha", "locon", "dylora", "glora", "diag-oft", "boft"]))
def test_the_librarys_own_loader_reads_the_file(algorithm: str, load: Callable[..., nn.Module], tmp_path: Path) -> None:
    from lycoris import create_lycoris_from_weights

    transformer = load()
    adapter = attach(transformer, content_of(algorithm))
    train_a_little(transformer, adapter, parts=algorithm == "dylora")
    adapter.save(tmp_path / "a.safetensors", {})
    other = load()
    network, _ = create_lycoris_from_weights(1.0, str(tmp_path / "a.safetensors"), other)
    network.apply_to()
    assert torch.allclose(call(other), shown(transformer, adapter), atol=1e-5)


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


@pytest.mark.parametrize(
    ("preset", "idle"),
    [
        ({"target_module": ["FeedForward"], "module_algo_map": {"Attention": {"factor": 4}}}, "'Attention'"),
        ({"target_name": ["transformer_blocks.0.attn1.to_q", "transformer_blocks.9"]}, "'transformer_blocks.9'"),
        ({"target_module": ["FeedForward"], "name_algo_map": {"proj_ino": {"factor": 4}}}, "'proj_ino'"),
        ({"target_name": ["*.to_x"], "use_fnmatch": True}, r"'\*.to_x'"),
    ],
)
def test_every_single_target_must_match(preset: dict[str, Any], idle: str, load: Callable[..., nn.Module]) -> None:
    with pytest.raises(UserError, match=f"{idle} matches no layer"):
        attach(load(), {**content_of("lokr"), "apply_preset": preset})


def test_names_and_classes_choose_together(load: Callable[..., nn.Module]) -> None:
    preset = {"target_name": ["*.attn2.to_v"], "use_fnmatch": True, "target_module": ["FeedForward"],
              "name_algo_map": {"proj_out": {"algo": "loha", "linear_dim": 2}}}  # fmt: skip
    transformer = load()
    adapter = attach(transformer, {**content_of("lokr"), "apply_preset": preset})
    blocks = len(transformer.transformer_blocks)
    assert {layer.rpartition(".")[2] for layer in adapter.layers} == {"to_v", "proj", "2", "proj_out"}
    assert len(adapter.layers) == 3 * blocks + 1
    cost = LTXCostSource()
    sizes = {name: (m.in_features, m.out_features) for name, m in load().named_modules() if isinstance(m, nn.Linear)}
    kinds = lycoris_layers(LycorisFile(**content_of("lokr"), apply_preset=preset), sizes, cost, "LTXAttention")
    assert sorted(kinds) == sorted(adapter.layers)
    counted = sum(parameter.numel() for parameter in adapter.parameters().values())
    assert counted == sum(kind.values(*sizes[name]) for name, kind in kinds.items())


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
