"""LoRA files: every layout is read whole, written, and gives the same deltas; what is not understood is refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from simpletuner.config.catalogs.adapters import LORA_LAYOUTS
from simpletuner.config.sections.adapter import AdapterSection
from simpletuner.core.errors import UserError
from simpletuner.models.adapters import lora
from simpletuner.models.adapters.lora_file import (
    LayerLora,
    LoraFile,
    largest_difference,
    read_lora_file,
    write_lora_file,
)
from simpletuner.models.ltxvideo.family import FAMILY
from simpletuner.models.ltxvideo.lora_names import find_layer

CPU = torch.device("cpu")
LAYERS = ("proj_in", "time_embed.emb.timestep_embedder.linear_1", "caption_projection.linear_2",
          "transformer_blocks.11.attn2.to_out.0", "transformer_blocks.0.ff.net.0.proj")  # fmt: skip


def make_file(*, dtype: torch.dtype = torch.float32, dora: bool = False, scale: float = 0.375) -> LoraFile:
    draw = torch.Generator().manual_seed(0)
    layers = {}
    for number, name in enumerate(LAYERS):
        rank = 4 + number % 2
        down, up = torch.randn(rank, 12, generator=draw), torch.randn(8, rank, generator=draw)
        lengths = torch.rand(8, generator=draw) + 1 if dora else None
        layers[name] = LayerLora(down.to(dtype), up.to(dtype), scale * (1 + number % 3), lengths)
    return LoraFile(layers, {"global_step": "7"})


def names_of(path: Path) -> set[str]:
    return set(load_file(path))


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", list(LORA_LAYOUTS))
def test_every_layout_gives_the_same_deltas_back(layout: str, dtype: torch.dtype, dora: bool, tmp_path: Path) -> None:
    file = make_file(dtype=dtype, dora=dora)
    write_lora_file(tmp_path / "a.safetensors", file, layout, FAMILY, {"note": "x"})
    again = read_lora_file(tmp_path / "a.safetensors", FAMILY)
    assert list(again.layers)
    assert again.layers.keys() == file.layers.keys()
    assert largest_difference(file, again) <= 1e-6
    assert (again.metadata["global_step"], again.metadata["note"]) == ("7", "x")
    assert again.metadata["modelspec.architecture"] == "ltx-video/lora"


def test_a_chain_through_all_layouts_keeps_the_deltas(tmp_path: Path) -> None:
    first = file = make_file(dtype=torch.bfloat16, dora=True)
    for number, layout in enumerate(itertools.chain(LORA_LAYOUTS, reversed(list(LORA_LAYOUTS)))):
        write_lora_file(tmp_path / f"{number}.safetensors", file, layout, FAMILY)
        file = read_lora_file(tmp_path / f"{number}.safetensors", FAMILY)
    assert largest_difference(first, file) <= 1e-6


def test_names_are_those_of_each_program(tmp_path: Path) -> None:
    for layout in LORA_LAYOUTS:
        write_lora_file(tmp_path / layout, make_file(), layout, FAMILY)
    assert "transformer.proj_in.lora_A.weight" in names_of(tmp_path / "diffusers")
    comfy = names_of(tmp_path / "comfyui")
    assert "diffusion_model.patchify_proj.lora_B.weight" in comfy
    assert "diffusion_model.adaln_single.emb.timestep_embedder.linear_1.lora_A.weight" in comfy
    assert "diffusion_model.transformer_blocks.11.attn2.to_out.0.lora_A.weight" in comfy
    assert not any("alpha" in name for name in comfy)
    assert names_of(tmp_path / "original") == {name.removeprefix("diffusion_model.") for name in comfy}
    kohya = load_file(tmp_path / "kohya")
    assert float(kohya["lora_unet_patchify_proj.alpha"]) == 0.375 * 4
    assert "lora_unet_transformer_blocks_0_ff_net_0_proj.lora_down.weight" in kohya


def test_folding_keeps_the_format_only_where_it_is_exact(tmp_path: Path) -> None:
    for scale, dtype in ((0.5, torch.bfloat16), (1 / 3, torch.float32)):
        lora_file = make_file(dtype=torch.bfloat16)
        one = LoraFile({"proj_in": LayerLora(*_pair(lora_file), scale)}, {})
        write_lora_file(tmp_path / "a", one, "comfyui", FAMILY)
        assert load_file(tmp_path / "a")["diffusion_model.patchify_proj.lora_B.weight"].dtype == dtype


def _pair(file: LoraFile) -> tuple[Tensor, Tensor]:
    return file.layers["proj_in"].down, file.layers["proj_in"].up


@pytest.mark.parametrize("prefix", ["transformer.", "diffusion_model.", "", "base_model.model."])
@pytest.mark.parametrize("words", [("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight")])
def test_variants_in_the_wild_are_read(prefix: str, words: tuple[str, str], tmp_path: Path) -> None:
    down, up = torch.randn(4, 12), torch.randn(8, 4)
    save_file(
        {
            f"{prefix}adaln_single.linear.{words[0]}": down,
            f"{prefix}adaln_single.linear.{words[1]}": up,
            f"{prefix}adaln_single.linear.alpha": torch.tensor(2.0),
        },
        tmp_path / "a",
    )
    layers = read_lora_file(tmp_path / "a", FAMILY).layers
    assert list(layers) == ["time_embed.linear"]
    torch.testing.assert_close(layers["time_embed.linear"].delta(), 0.5 * up.double() @ down.double())


def test_rslora_and_patterns_of_the_metadata_set_the_strength(tmp_path: Path) -> None:
    tensors = {}
    for layer in ("transformer_blocks.1.attn1.to_q", "transformer_blocks.1.ff.net.2"):
        tensors |= {f"transformer.{layer}.lora_A.weight": torch.ones(4, 3)}
        tensors |= {f"transformer.{layer}.lora_B.weight": torch.ones(5, 4)}
    config = {"transformer.r": 4, "transformer.lora_alpha": 6, "transformer.use_rslora": True,
              "transformer.alpha_pattern": {"ff.net.2": 8}}  # fmt: skip
    save_file(tensors, tmp_path / "a", {"lora_adapter_metadata": json.dumps(config)})
    layers = read_lora_file(tmp_path / "a", FAMILY).layers
    assert {name: lora.scale for name, lora in layers.items()} == {
        "transformer_blocks.1.attn1.to_q": 3.0, "transformer_blocks.1.ff.net.2": 4.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("diffusion_model.double_blocks.0.attn.lora_A.weight", "not known"),
        ("transformer.proj_in.hada_w1_a", "not known"),
        ("lycoris_proj_in.lokr_w1", "LyCORIS"),
        ("crepa_projector.weight", "not known"),
        ("lora_unet_transformer_blocks_0_attn3_to_q.lora_down.weight", "not known"),
        ("transformer.proj_out.lora_A.weight", "without a fitting partner"),
        ("diffusion_model.patchify_proj.lora_A.weight", "given twice"),
    ],
)
def test_nothing_is_left_over(name: str, told: str, tmp_path: Path) -> None:
    write_lora_file(tmp_path / "a", make_file(), "diffusers", FAMILY)
    save_file({**load_file(tmp_path / "a"), name: torch.zeros(4, 12)}, tmp_path / "b")
    with pytest.raises(UserError, match=told):
        read_lora_file(tmp_path / "b", FAMILY)


def test_unreadable_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"no safetensors")
    for path in (tmp_path / "a", tmp_path / "missing"):
        with pytest.raises(UserError, match="cannot be read"):
            read_lora_file(path, FAMILY)


def test_every_linear_layer_has_a_name_in_every_layout(resolved: Callable[..., Any]) -> None:
    transformer = FAMILY.load_transformer(resolved("0.9.5"), torch.float32, CPU)
    for layer in FAMILY.adapter_targets(transformer, "all"):
        original = FAMILY.original_layer(layer)
        for name in (layer, original, f"transformer.{layer}", f"diffusion_model.{original}"):
            assert find_layer(name) == layer
            assert find_layer("lora_unet_" + name.split("model.")[-1].removeprefix("transformer.").replace(".", "_"))
        assert find_layer("lora_unet_" + original.replace(".", "_")) == layer
    assert find_layer("transformer_blocks.01.attn1.to_q") is None


@pytest.fixture
def build(resolved: Callable[..., Any]) -> Callable[..., tuple[nn.Module, lora.LoraAdapter]]:
    def give(seed: int = 0, **settings: Any) -> tuple[nn.Module, lora.LoraAdapter]:
        transformer = FAMILY.load_transformer(resolved("0.9.5"), torch.float32, CPU)
        section = AdapterSection(**{"lora_rank": 4, "lora_targets": "all", **settings})
        return transformer, lora.build_lora(transformer, FAMILY, section, None, torch.float32, seed)

    return give


def disturb(adapter: lora.LoraAdapter) -> None:
    with torch.no_grad():
        for number, parameter in enumerate(adapter.parameters().values()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))


@pytest.mark.parametrize("layout", list(LORA_LAYOUTS))
@pytest.mark.parametrize("dora", [False, True])
def test_a_run_starts_from_a_file_of_any_layout(
    build: Callable[..., Any], layout: str, dora: bool, tmp_path: Path
) -> None:
    _, trained = build(lora_alpha=2.0, use_dora=dora)
    disturb(trained)
    trained.save(tmp_path / "own.safetensors", {})
    file = read_lora_file(tmp_path / "own.safetensors", FAMILY)
    write_lora_file(tmp_path / "start.safetensors", file, layout, FAMILY)
    _, begun = build(5, lora_alpha=8.0, use_dora=dora, init_lora=str(tmp_path / "start.safetensors"))
    begun.save(tmp_path / "again.safetensors", {})
    assert largest_difference(file, read_lora_file(tmp_path / "again.safetensors", FAMILY)) <= 1e-6


def test_a_file_that_does_not_fit_the_run_is_refused(build: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    build()[1].save(path, {})
    with pytest.raises(UserError, match=r"layers that this run does not train(.|\n)*lora_rank 8(.|\n)*use_dora True"):
        build(lora_targets="attention", lora_rank=8, use_dora=True, init_lora=str(path))


@pytest.mark.parametrize("alpha", [4.0, 3.0])
def test_comfyui_files_are_written_and_continued(build: Callable[..., Any], alpha: float, tmp_path: Path) -> None:
    _, adapter = build(lora_alpha=alpha, lora_format="comfyui")
    disturb(adapter)
    adapter.save(tmp_path / "a.safetensors", {"global_step": "3"})
    with safe_open(tmp_path / "a.safetensors", framework="pt") as handle:
        assert all(name.startswith("diffusion_model.") for name in handle.keys())  # noqa: SIM118
        assert handle.metadata()["global_step"] == "3"
    _, other = build(9, lora_alpha=alpha, lora_format="comfyui")
    other.load_file_tensors(load_file(tmp_path / "a.safetensors"))
    assert adapter.file_is_exact == (alpha == 4.0)
    for name, parameter in adapter.parameters().items():
        close = torch.equal if adapter.file_is_exact else torch.allclose
        assert close(other.parameters()[name], parameter)
