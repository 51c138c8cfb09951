"""Quantized base models that are kept: equal to what was quantized, proven when loaded, told and cleared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from simpletuner.caching.checked_tensors import DamagedFileError, read_tensors, write_tensors
from simpletuner.caching.quantized_base import FACTS_NAME, WEIGHTS_NAME, QuantizedBase, kept_models, verify_kept
from simpletuner.config.catalogs.precisions import PRECISIONS
from simpletuner.config.sections.model import ModelSection
from simpletuner.models.ltxvideo.family import FAMILY
from simpletuner.models.precision.quantize import fill_quantized, layers_to_quantize, quantize_blocks

CPU, BF16 = torch.device("cpu"), torch.bfloat16
PACKAGES = {"": "torch", "quanto": "optimum.quanto", "torchao": "torchao", "bnb": "bitsandbytes"}
EVERY_DAY = ("int4-quanto", "fp8-torchao", "nf4-bnb")
QUANTIZED = [
    name if name in EVERY_DAY else pytest.param(name, marks=pytest.mark.slow)
    for name in PRECISIONS
    if PRECISIONS[name].target
]


@pytest.fixture(scope="module")
def source(miniature: Path) -> Any:
    return FAMILY.resolve(ModelSection(pretrained_model_name_or_path=str(miniature)))


def base_at(folder: Path, precision: str, identity: str = "a") -> QuantizedBase:
    pytest.importorskip(PACKAGES[PRECISIONS[precision].extra])
    return QuantizedBase(folder, identity, precision, BF16, FAMILY.block_list)


def quantized(source: Any, precision: str) -> tuple[nn.Module, list[str]]:
    shell, tensors = FAMILY.transformer_in_pieces(source)
    layers = layers_to_quantize(shell, FAMILY.block_list)
    model = fill_quantized(shell, tensors, precision, FAMILY.block_list, dtype=BF16, place=CPU, device=CPU)
    return model, layers


@torch.no_grad()
def predict(model: nn.Module, source: Any) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    channels, width = FAMILY.input_widths(model)
    return FAMILY.predict(
        model, source, torch.randn(1, channels, 2, 2, 3, generator=draw), torch.tensor([0.6]),
        torch.randn(1, 8, width, generator=draw), torch.ones(1, 8, dtype=torch.bool), torch.tensor([25.0]),
    )  # fmt: skip


@pytest.mark.parametrize("precision", QUANTIZED)
def test_what_is_loaded_computes_what_was_quantized(precision: str, source: Any, tmp_path: Path) -> None:
    base = base_at(tmp_path, precision)
    model, layers = quantized(source, precision)
    assert not base.exists()
    size = base.save(model, layers)
    assert size == (base.folder / WEIGHTS_NAME).stat().st_size
    loaded = base.load_into(FAMILY.transformer_in_pieces(source)[0], CPU)
    assert torch.equal(predict(loaded, source), predict(model, source))
    assert [type(m) for m in loaded.modules()] == [type(m) for m in model.modules()]
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    # Layer by layer while reading gives what quantizing the whole model gives.
    whole = FAMILY.load_transformer(source, BF16, CPU)
    assert quantize_blocks(whole, precision, FAMILY.block_list) == len(layers)
    assert torch.equal(predict(whole, source), predict(model, source))


def test_damage_is_found_and_nothing_half_filled_is_used(source: Any, tmp_path: Path) -> None:
    base = base_at(tmp_path, "int8-quanto")
    base.save(*quantized(source, "int8-quanto"))
    verify_kept(base.folder)
    path = base.folder / WEIGHTS_NAME
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match="has changed since it was written"):
        base.load_into(FAMILY.transformer_in_pieces(source)[0], CPU)
    with pytest.raises(DamagedFileError, match="has changed"):
        verify_kept(base.folder)
    path.write_bytes(content[:-100])
    with pytest.raises(DamagedFileError, match="cannot be read"):
        verify_kept(base.folder)
    (base.folder / FACTS_NAME).write_text("{")
    with pytest.raises(DamagedFileError, match=f"{FACTS_NAME} cannot be used"):
        verify_kept(base.folder)


def test_each_of_its_facts_makes_it_another_one(tmp_path: Path) -> None:
    one = base_at(tmp_path, "int8-quanto")
    others = [
        base_at(tmp_path, "int8-quanto", identity="b"),
        base_at(tmp_path, "int8-torchao"),
        QuantizedBase(tmp_path, "a", "int8-quanto", torch.float32, FAMILY.block_list),
    ]
    assert len({base.folder for base in (one, *others)}) == 4
    assert {"optimum-quanto", "torch"} <= one.facts.keys()


def test_a_killed_writer_leaves_nothing_that_counts(source: Any, tmp_path: Path, monkeypatch: Any) -> None:
    base = base_at(tmp_path, "int8-quanto")

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("simpletuner.caching.quantized_base.write_json_atomic", fail)
    with pytest.raises(KeyboardInterrupt):
        base.save(*quantized(source, "int8-quanto"))
    assert not base.exists()
    assert kept_models(tmp_path) == []


def test_the_file_is_an_ordinary_safetensors_file(tmp_path: Path) -> None:
    tensors = {
        "one": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3), "none": torch.zeros(0, 4),
        "number": torch.tensor(3.5), "small": torch.tensor([1, -2], dtype=torch.int8),
        "eight": torch.tensor([0.5, 448.0]).to(torch.float8_e4m3fn),
    }  # fmt: skip
    checksums = write_tensors(tmp_path / "a.safetensors", tensors)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as handle:
        for name, tensor in tensors.items():
            found = handle.get_tensor(name)
            assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(found.float(), tensor.float())
    assert {name for name, _ in read_tensors(tmp_path / "a.safetensors", checksums)} == tensors.keys()
    with pytest.raises(DamagedFileError, match="not those that were noted"):
        list(read_tensors(tmp_path / "a.safetensors", {**checksums, "more": 1}))
    json.dumps(checksums)
