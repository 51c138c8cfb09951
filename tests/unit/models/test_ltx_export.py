"""The exported LoRA file loads in Diffusers without a warning and acts as it did in training."""

from __future__ import annotations

import hashlib
import json
import logging

import pytest
import torch
from diffusers import LTXConditionPipeline, LTXPipeline
from safetensors import safe_open

from simpletuner.config.sections.adapter import AdapterSection
from simpletuner.models.adapters import lora
from simpletuner.models.ltxvideo.family import FAMILY

CPU = torch.device("cpu")


@pytest.fixture
def adapted(resolved):
    def build(release, choice, dtype=torch.float32):
        transformer = FAMILY.load_transformer(resolved(release), torch.float32, CPU)
        targets = FAMILY.adapter_targets(transformer, choice)
        lora.attach_lora(transformer, targets, AdapterSection(lora_rank=4, lora_alpha=2.0), dtype, 0)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in lora.adapter_parameters(transformer).values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        return transformer

    return build


def predict(transformer, source):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 128, 2, 2, 3, generator=generator)
    embeds = torch.randn(1, 8, 64, generator=generator)
    mask = torch.ones(1, 8, dtype=torch.bool)
    with torch.no_grad():
        return FAMILY.predict(transformer, source, latents, torch.tensor([0.7]), embeds, mask, torch.tensor([25.0]))


def save(transformer, path, metadata=None):
    FAMILY.save_adapter(path, lora.adapter_tensors(transformer), lora.adapter_config(transformer), metadata or {})


@pytest.fixture
def library_warnings():
    """Warnings of Diffusers and PEFT, whose loggers do not reach pytest's own capture."""
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append
    loggers = [logging.getLogger(name) for name in ("diffusers", "peft")]
    for logger in loggers:
        logger.addHandler(handler)
    yield records
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.mark.parametrize("choice", ["attention", "all"])
@pytest.mark.parametrize(("release", "pipeline"), [("0.9.1", LTXPipeline), ("0.9.5", LTXConditionPipeline)])
def test_file_loads_silently_at_the_right_strength(
    adapted, resolved, tmp_path, library_warnings, release, pipeline, choice
):
    transformer, source = adapted(release, choice), resolved(release)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    save(transformer, path)
    fresh = FAMILY.load_transformer(source, torch.float32, CPU)
    base = predict(fresh, source)
    pipe = pipeline(scheduler=None, vae=None, text_encoder=None, tokenizer=None, transformer=fresh)
    pipe.load_lora_weights(str(path))
    assert [record.getMessage() for record in library_warnings] == []
    expected = predict(transformer, source)
    assert not torch.allclose(expected, base, atol=1e-2)
    assert torch.equal(predict(fresh, source), expected)
    layers = [name for name, _ in fresh.named_modules() if name.endswith("lora_A")]
    assert len(layers) == len(FAMILY.adapter_targets(FAMILY.load_transformer(source, torch.float32, CPU), choice))


def test_keys_formats_and_metadata(adapted, tmp_path):
    transformer = adapted("0.9.5", "all", torch.bfloat16)
    path = tmp_path / "out" / "pytorch_lora_weights.safetensors"
    save(transformer, path, {"global_step": "60", "modelspec.title": "a circle"})
    with safe_open(path, framework="pt") as handle:
        metadata, names = handle.metadata(), set(handle.keys())
        assert {handle.get_tensor(name).dtype for name in names} == {torch.bfloat16}
    assert names == {f"transformer.{name}" for name in lora.adapter_parameters(transformer)}
    assert (metadata["format"], metadata["global_step"], metadata["modelspec.title"]) == ("pt", "60", "a circle")
    assert metadata["modelspec.sai_model_spec"] == "1.0.1"
    # Of the tensors' bytes alone: the header, which holds this very text, is left out.
    content = path.read_bytes()
    body = content[8 + int.from_bytes(content[:8], "little") :]
    assert metadata["modelspec.hash_sha256"] == "0x" + hashlib.sha256(body).hexdigest()
    config = json.loads(metadata["lora_adapter_metadata"])
    assert (config["transformer.r"], config["transformer.lora_alpha"]) == (4, 2.0)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]  # no staging file left


def test_a_failed_export_leaves_the_old_file(adapted, tmp_path):
    path = tmp_path / "pytorch_lora_weights.safetensors"
    save(adapted("0.9.5", "attention"), path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        FAMILY.save_adapter(path, {"a.lora_A.weight": torch.zeros(1)}, {"r": object()}, {})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
