"""Several adapter files at once on the real small transformer: effects add up, strengths scale, misfits are told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from simpletuner.config.lycoris_file import LycorisFile
from simpletuner.config.sections.adapter import AdapterSection
from simpletuner.config.sections.model import ModelSection
from simpletuner.core.errors import UserError
from simpletuner.models.adapters.applied import apply_adapters, weaken_dora
from simpletuner.models.adapters.lora import build_lora
from simpletuner.models.adapters.lora_file import LayerLora
from simpletuner.models.adapters.lycoris import LycorisAdapter
from simpletuner.models.adapters.visiting import VisitingLora
from simpletuner.models.adapters.weights_file import WeightsFile, check_together, read_weights_file, split_strength
from simpletuner.models.ltxvideo.family import FAMILY

LAYER = "transformer_blocks.0.attn1.to_q"
LOKR: dict[str, Any] = {
    "algo": "lokr", "multiplier": 1.0, "linear_alpha": 1, "full_matrix": True, "factor": 4,
    "apply_preset": {"target_module": ["LTXAttention"]},
}  # fmt: skip


def load(miniature: Path) -> nn.Module:
    return FAMILY.load_transformer_at(str(miniature), torch.float32).eval()


def shake(parameters: dict[str, nn.Parameter], seed: int) -> None:
    with torch.no_grad():
        for number, parameter in enumerate(parameters.values()):
            draw = torch.Generator().manual_seed(100 * seed + number)
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))


def write_lora(miniature: Path, path: Path, seed: int, **settings: Any) -> Path:
    section = AdapterSection(**{"lora_rank": 4, "lora_alpha": 3.0, "lora_targets": "attention", **settings})
    adapter = build_lora(load(miniature), FAMILY, section, None, torch.float32, seed)
    shake(adapter.parameters(), seed)
    adapter.save(path, {"base_model": "the/base", "global_step": "7"})
    return path


def write_lokr(miniature: Path, path: Path, seed: int, algo: str = "lokr") -> Path:
    file = LycorisFile(**{**LOKR, "algo": algo, "linear_dim": 4})
    adapter = LycorisAdapter(load(miniature), file, ["LTXAttention"], dtype=torch.float32, seed=seed)
    shake(adapter.parameters(), seed)
    adapter.save(path, {})
    return path


def added(miniature: Path, *files: WeightsFile) -> Tensor:
    """What the adapters add to the output of one layer."""
    transformer = load(miniature)
    layer = transformer.get_submodule(LAYER)
    inputs = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    with torch.no_grad():
        before = layer(inputs)
        with apply_adapters(transformer, FAMILY, files).shown():
            return transformer.get_submodule(LAYER)(inputs) - before


def test_effects_add_up_each_at_its_strength(miniature: Path, tmp_path: Path) -> None:
    one = read_weights_file(write_lora(miniature, tmp_path / "one.safetensors", 1))
    two = read_weights_file(write_lora(miniature, tmp_path / "two.safetensors", 2, lora_rank=8, lora_targets="all"))
    three = read_weights_file(write_lokr(miniature, tmp_path / "three.safetensors", 3))
    parts = [added(miniature, file) for file in (one, two, three)]
    assert all(part.abs().max() > 1e-3 for part in parts)
    strengths = (0.5, -0.25, 2.0)
    together = [replace(file, strength=strength) for file, strength in zip((one, two, three), strengths, strict=True)]
    expected = sum(strength * part for strength, part in zip(strengths, parts, strict=True))
    torch.testing.assert_close(added(miniature, *together), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(added(miniature, *reversed(together)), expected, rtol=1e-4, atol=1e-5)
    assert not list(check_together(together))


def test_a_visitor_adds_the_same_beside_what_is_trained_and_leaves_no_trace(miniature: Path, tmp_path: Path) -> None:
    path = write_lora(miniature, tmp_path / "guest.safetensors", 1)
    expected = added(miniature, read_weights_file(path, 0.5))
    source = FAMILY.resolve(ModelSection(pretrained_model_name_or_path=str(miniature)))
    visitor = VisitingLora(FAMILY, source, path, 0.5)
    transformer = load(miniature)
    trained = build_lora(transformer, FAMILY, AdapterSection(lora_rank=2), None, torch.float32, 3)
    shake(trained.parameters(), 4)
    layer = transformer.get_submodule(LAYER)
    inputs = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    with torch.no_grad():
        before = layer(inputs)
        with visitor.worn(transformer):
            torch.testing.assert_close(layer(inputs) - before, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(layer(inputs), before)
    with pytest.raises(UserError, match="is a lycoris file"):
        VisitingLora(FAMILY, source, write_lokr(miniature, tmp_path / "lokr.safetensors", 2), 1.0)


def test_two_lycoris_files_add_up(miniature: Path, tmp_path: Path) -> None:
    files = [
        read_weights_file(write_lokr(miniature, tmp_path / f"{seed}.safetensors", seed, algo), 0.5)
        for seed, algo in ((1, "lokr"), (2, "loha"))
    ]
    expected = sum(added(miniature, file) for file in files)
    torch.testing.assert_close(added(miniature, *files), expected, rtol=1e-4, atol=1e-5)


def test_dora_scales_and_goes_with_a_lora(miniature: Path, tmp_path: Path) -> None:
    dora = read_weights_file(write_lora(miniature, tmp_path / "dora.safetensors", 1, use_dora=True))
    plain = read_weights_file(write_lora(miniature, tmp_path / "plain.safetensors", 2))
    assert dora.uses_dora
    whole, other = added(miniature, dora), added(miniature, plain)
    torch.testing.assert_close(added(miniature, replace(dora, strength=0.3)), 0.3 * whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(added(miniature, plain, dora), whole + other, rtol=1e-4, atol=1e-5)


def test_weaker_dora_against_the_merged_weight() -> None:
    draw = torch.Generator().manual_seed(1)
    weight = torch.randn(6, 5, generator=draw)
    lora = LayerLora(
        torch.randn(2, 5, generator=draw), torch.randn(6, 2, generator=draw), 1.5, torch.rand(6, generator=draw) + 1
    )
    for strength in (0.0, 0.4, 1.0, -0.2):
        expected = weight + strength * (lora.merged(weight) - weight)
        torch.testing.assert_close(weaken_dora(weight, lora, strength).merged(weight), expected, rtol=1e-5, atol=1e-5)


def test_a_lora_of_another_model_is_told(miniature: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file(
        {
            f"transformer.{LAYER}.lora_A.weight": torch.zeros(2, 9),
            f"transformer.{LAYER}.lora_B.weight": torch.ones(9, 2),
        },
        path,
        {"base_model": "the/13B"},
    )
    with pytest.raises(UserError, match=r"1 of 1 layers .*do not fit.*\[9, 9\] is \[128, 128\].*'the/13B'"):
        apply_adapters(load(miniature), FAMILY, [read_weights_file(path)])


def test_what_cannot_go_together_is_told(miniature: Path, tmp_path: Path) -> None:
    lora = WeightsFile(tmp_path / "a", "lora")
    dora, other_dora = (WeightsFile(tmp_path / name, "lora", uses_dora=True) for name in ("b", "c"))
    lokr = WeightsFile(tmp_path / "d", "lycoris", lycoris=LycorisFile(**LOKR))
    full = WeightsFile(tmp_path / "e", "lycoris", lycoris=LycorisFile(**{**LOKR, "algo": "full"}))
    whole = WeightsFile(tmp_path / "f", "whole")
    assert [not list(check_together(files)) for files in (
        [lora, lokr, lora], [dora, lora], [full], [whole, full], [whole, lora, lokr],
        [dora, other_dora], [dora, lokr], [full, lora], [whole, whole],
    )] == [True] * 5 + [False] * 4  # fmt: skip


def test_what_a_file_is(miniature: Path, tmp_path: Path) -> None:
    lora = write_lora(miniature, tmp_path / "pytorch_lora_weights.safetensors", 1)
    assert read_weights_file(tmp_path, 0.5) == replace(read_weights_file(lora), strength=0.5)
    assert read_weights_file(miniature).kind == "whole"
    assert read_weights_file(miniature).path == miniature / "transformer"
    (weights,) = (miniature / "transformer").glob("*.safetensors")
    assert read_weights_file(weights).kind == "whole"
    with pytest.raises(UserError, match="no meaning"):
        read_weights_file(miniature, 0.5)
    save_file({"lycoris_a.lokr_w1": torch.zeros(1)}, tmp_path / "bare.safetensors")
    with pytest.raises(UserError, match="without its settings"):
        read_weights_file(tmp_path / "bare.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors", {"lycoris_config": "{"})
    with pytest.raises(UserError, match="cannot be read"):
        read_weights_file(tmp_path / "x.safetensors")
    (tmp_path / "run/checkpoint-5").mkdir(parents=True)
    with pytest.raises(UserError, match="checkpoint-5"):
        read_weights_file(tmp_path / "run")


def test_strengths(tmp_path: Path) -> None:
    assert split_strength("a.safetensors") == (Path("a.safetensors"), 1.0)
    assert split_strength("a.safetensors:0.5") == (Path("a.safetensors"), 0.5)
    assert split_strength("C:/a.safetensors:-1e-1") == (Path("C:/a.safetensors"), -0.1)
    assert split_strength("C:/a.safetensors") == (Path("C:/a.safetensors"), 1.0)
    odd = tmp_path / "a:2"
    odd.write_text("")
    assert split_strength(str(odd)) == (odd, 1.0)
    with pytest.raises(UserError, match="finite"):
        split_strength("a:nan")
