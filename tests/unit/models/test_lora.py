"""The adapter: neutral start, seeds, number formats, exact saving and loading."""

from __future__ import annotations

import json

import pytest
import torch
from peft.tuners.lora import LoraLayer

from simpletuner.config.sections.adapter import AdapterSection
from simpletuner.core.errors import UserError
from simpletuner.models.adapters import lora
from simpletuner.models.ltxvideo.family import FAMILY

CPU = torch.device("cpu")


@pytest.fixture
def build(resolved):
    source = resolved("0.9.5")

    def give(choice="all", *, base=torch.float32, dtype=torch.float32, seed=0, **settings):
        transformer = FAMILY.load_transformer(source, base, CPU)
        targets = FAMILY.adapter_targets(transformer, choice)
        lora.attach_lora(transformer, targets, AdapterSection(**{"lora_rank": 4, **settings}), dtype, seed)
        return transformer

    return give


@pytest.fixture
def predict(resolved):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 128, 2, 2, 3, generator=generator)
    embeds = torch.randn(1, 8, 64, generator=generator)

    def call(transformer):
        mask = torch.ones(1, 8, dtype=torch.bool)
        arguments = (latents, torch.tensor([0.7]), embeds, mask, torch.tensor([25.0]))
        return FAMILY.predict(transformer, resolved("0.9.5"), *arguments)

    return call


def disturb(transformer):
    """Make the adapter do something."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in lora.adapter_parameters(transformer).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def test_start_is_neutral_and_only_the_adapter_trains(build, predict, resolved):
    base = predict(FAMILY.load_transformer(resolved("0.9.5"), torch.float32, CPU))
    transformer = build()
    assert torch.equal(predict(transformer), base)
    parameters = lora.adapter_parameters(transformer)
    trained = {id(p) for p in transformer.parameters() if p.requires_grad}
    assert trained == {id(p) for p in parameters.values()}
    assert len(parameters) == 2 * (10 * 2 + 7)
    assert next(iter(parameters)) == "proj_in.lora_A.weight"


def test_start_depends_on_the_seed_alone(build):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = lora.adapter_tensors(build(seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = lora.adapter_tensors(build(seed=3)), lora.adapter_tensors(build(seed=4))
    some = lora.adapter_tensors(build("attention", seed=3))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first[name], some[name]) for name in some)  # other layers do not matter
    assert not torch.equal(first["proj_in.lora_A.weight"], other["proj_in.lora_A.weight"])
    start = first["proj_in.lora_A.weight"]
    assert start.abs().max() <= 128**-0.5
    assert start.std() == pytest.approx(128**-0.5 / 3**0.5, rel=0.1)


def test_gaussian_start_has_the_spread_of_one_over_the_rank(build):
    start = lora.adapter_tensors(build(lora_init_type="gaussian"))["proj_in.lora_A.weight"]
    assert start.std() == pytest.approx(1 / 4, rel=0.1)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_of_both_formats_train_on_a_bf16_base(build, predict, dtype, checkpointing):
    transformer = build(base=torch.bfloat16, dtype=dtype)
    disturb(transformer)
    transformer.train()
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    predict(transformer).square().mean().backward()
    for name, parameter in lora.adapter_parameters(transformer).items():
        assert parameter.dtype == dtype
        assert parameter.grad.dtype == dtype
        assert parameter.grad.abs().sum() > 0, name


def test_checkpointing_changes_no_gradient(build, predict):
    gradients = []
    for checkpointing in (False, True):
        transformer = build()
        disturb(transformer)
        transformer.train()
        if checkpointing:
            transformer.enable_gradient_checkpointing()
        predict(transformer).square().mean().backward()
        gradients.append([p.grad for p in lora.adapter_parameters(transformer).values()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_tensors_load_exactly(build, predict, dtype):
    trained, fresh = build(dtype=dtype), build(dtype=dtype, seed=1)
    disturb(trained)
    tensors = lora.adapter_tensors(trained)
    assert all(t.dtype == dtype and t.is_contiguous() for t in tensors.values())
    expected = predict(trained)
    lora.load_adapter_tensors(fresh, tensors)
    assert torch.equal(predict(fresh), expected)
    disturb(trained)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    with torch.no_grad():
        for parameter in lora.adapter_parameters(trained).values():
            parameter.add_(1)
    assert all(torch.equal(tensors[name], before[name]) for name in tensors)  # copies, not views


def test_tensors_of_another_rank_or_target_set_are_refused_untouched(build):
    transformer = build()
    before = lora.adapter_tensors(transformer)
    with pytest.raises(
        UserError, match=r"54 adapter tensors are of another shape.*\[8, 128\], not \[4, 128\].*lora_rank"
    ):
        lora.load_adapter_tensors(transformer, lora.adapter_tensors(build(lora_rank=8)))
    with pytest.raises(UserError, match=r"22 adapter tensors are missing.*lora_targets"):
        lora.load_adapter_tensors(transformer, lora.adapter_tensors(build("attention")))
    with pytest.raises(UserError, match=r"22 adapter tensors are left over"):
        lora.load_adapter_tensors(build("attention"), before)
    after = lora.adapter_tensors(transformer)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_config_is_plain_json_and_names_every_layer(build):
    config = lora.adapter_config(build("attention", lora_alpha=2.0))
    assert json.loads(json.dumps(config)) == config
    assert (config["r"], config["lora_alpha"]) == (4, 2.0)
    assert len(config["target_modules"]) == 16
    assert "transformer_blocks.0.attn1.to_out.0" in config["target_modules"]
    assert lora.adapter_config(build())["lora_alpha"] == 4  # absent alpha is the rank


def test_alpha_scales_the_adapter(build, predict, resolved):
    base = predict(FAMILY.load_transformer(resolved("0.9.5"), torch.float32, CPU))
    full, half = build(["proj_out"]), build(["proj_out"], lora_alpha=2.0)
    disturb(full)
    disturb(half)
    torch.testing.assert_close((predict(half) - base) * 2, predict(full) - base, rtol=1e-3, atol=1e-4)


def test_disabled_adapter_gives_the_base_and_comes_back(build, predict, resolved):
    plain = FAMILY.load_transformer(resolved("0.9.5"), torch.float32, CPU)
    base = predict(plain)
    transformer = build()
    disturb(transformer)
    adapted = predict(transformer)
    flags = [p.requires_grad for p in transformer.parameters()]
    with lora.adapter_disabled(transformer):
        assert torch.equal(predict(transformer), base)
    with pytest.raises(KeyError), lora.adapter_disabled(transformer):
        raise KeyError
    assert torch.equal(predict(transformer), adapted)
    assert [p.requires_grad for p in transformer.parameters()] == flags
    with lora.adapter_disabled(plain):
        assert torch.equal(predict(plain), base)


def test_dropout_acts_in_training_only(build, predict):
    transformer = build(lora_dropout=0.5)
    disturb(transformer)
    transformer.eval()
    assert torch.equal(predict(transformer), predict(transformer))
    transformer.train()
    assert not torch.equal(predict(transformer), predict(transformer))


@pytest.mark.parametrize("alpha", [4, 2, 6])
def test_the_thin_scale_is_pefts_product(build, predict, alpha):
    """Bit for bit with a factor of 1, up to rounding with others; merged, it is the same weight."""
    transformer = build(lora_alpha=alpha)
    disturb(transformer)
    ours = predict(transformer)
    layers = [module for module in transformer.modules() if isinstance(module, LoraLayer)]
    layer = layers[0]
    before = layer.get_base_layer().weight.clone()
    merged = layer.lora_variant[lora.ADAPTER].merge_safe(layer, lora.ADAPTER, before)
    torch.testing.assert_close(layer.lora_variant[lora.ADAPTER].unmerge(layer, lora.ADAPTER, merged), before)
    assert all(layer.lora_variant.pop(lora.ADAPTER, None) is not None for layer in layers)
    theirs = predict(transformer)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0 if alpha == 4 else 1e-5)
    layer.merge(safe_merge=True)
    assert torch.equal(layer.get_base_layer().weight, merged)
