"""What is trained beside plain LoRA continues bit for bit: DoRA, PiSSA, OLoRA, ComfyUI files, all weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LTXVideoTransformer3DModel
from safetensors.torch import load_file
from torch import Tensor

from simpletuner.config.lycoris_file import LycorisFile
from simpletuner.config.sections.adapter import AdapterSection
from simpletuner.config.sections.average import AverageSection
from simpletuner.core.errors import UserError
from simpletuner.training.checkpoint import find_checkpoint, restore, save_checkpoint
from simpletuner.training.fit import fit

EMA = AverageSection(use_ema=True, ema_decay=0.9, ema_update_interval=2)
METHODS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "pissa": {"lora_init_type": "pissa", "lora_alpha": 3.0},
    "olora": {"lora_init_type": "olora"},
    "comfyui": {"lora_format": "comfyui", "lora_alpha": 3.0},
    "comfyui pissa": {"lora_format": "comfyui", "lora_init_type": "pissa"},
    "comfyui dora": {"lora_format": "comfyui", "use_dora": True, "lora_alpha": 3.0},
}


def train(run: Any, until: int | None = None) -> list[float]:
    return [event.loss for event in fit(run.state, run.objective, stop=lambda: run.state.step == until)]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("optimizer", ["torch-adamw", "adamw_bf16"])
@pytest.mark.parametrize("method", METHODS)
def test_adapters_resume_bit_for_bit(
    small_run: Callable[..., Any], tmp_path: Path, method: str, optimizer: str
) -> None:
    section = AdapterSection(lora_rank=4, **METHODS[method])
    straight, first, second = (
        small_run(adapter=section, average=EMA, optimizer=optimizer, total_steps=8) for _ in range(3)
    )
    begun = straight.adapter()
    losses = train(straight)
    assert not same(begun, straight.adapter())
    early = train(first, 5)
    saved = save_checkpoint(first.state, tmp_path, facts=first.facts)
    assert restore(second.state, saved, second.facts) == ()
    assert early + train(second) == losses
    assert same(straight.adapter(), second.adapter())
    assert same(straight.state.average.tensors(), second.state.average.tensors())
    for number, run in enumerate((straight, second)):
        run.state.trainable.save_weights(tmp_path / f"{number}.safetensors", {})
    assert same(load_file(tmp_path / "0.safetensors"), load_file(tmp_path / "1.safetensors"))


def test_layers_that_are_left_out_by_chance_resume_bit_for_bit(small_run: Callable[..., Any], tmp_path: Path) -> None:
    file = LycorisFile.model_validate(
        {
            "algo": "lokr", "linear_dim": 4, "linear_alpha": 2, "multiplier": 1.0, "module_dropout": 0.4,
            "apply_preset": {"target_module": ["LTXAttention"]},
        }
    )  # fmt: skip
    section = AdapterSection(lora_type="lycoris")
    straight, first, second = (small_run(adapter=section, lycoris=file, total_steps=6) for _ in range(3))
    losses = train(straight)
    early = train(first, 1)
    saved = save_checkpoint(first.state, tmp_path, facts=first.facts)
    assert restore(second.state, saved, second.facts) == ()
    assert early + train(second) == losses
    assert same(straight.adapter(), second.adapter())


def test_a_group_that_trains_its_own_weights_survives_base_videos_and_resumes_bit_for_bit(
    small_run: Callable[..., Any], tmp_path: Path
) -> None:
    file = LycorisFile.model_validate(
        {
            "algo": "lokr", "linear_dim": 4, "linear_alpha": 2, "multiplier": 1.0,
            "apply_preset": {
                "target_module": ["LTXAttention", "FeedForward"], "module_algo_map": {"FeedForward": {"algo": "full"}}
            },
        }
    )  # fmt: skip
    section = AdapterSection(lora_type="lycoris")
    straight, first, second = (small_run(adapter=section, lycoris=file, total_steps=6) for _ in range(3))
    losses = train(straight)
    early = train(first, 3)
    before = first.adapter()
    with first.state.wearing("base"):
        pass
    assert same(before, first.adapter())
    saved = save_checkpoint(first.state, tmp_path, facts=first.facts)
    assert restore(second.state, saved, second.facts) == ()
    assert early + train(second) == losses
    assert same(straight.adapter(), second.adapter())


def test_another_method_is_refused_by_name(small_run: Callable[..., Any], tmp_path: Path) -> None:
    run = small_run(adapter=AdapterSection(lora_rank=4, use_dora=True), total_steps=2)
    train(run)
    saved = save_checkpoint(run.state, tmp_path, facts=run.facts)
    for other, told in ((small_run(), "use_dora True"), (small_run(full=True), "model_type lora")):
        with pytest.raises(UserError, match=told):
            restore(other.state, saved, other.facts)


def test_full_training_reaches_every_weight_and_resumes_bit_for_bit(
    small_run: Callable[..., Any], tmp_path: Path
) -> None:
    straight, first, second = (small_run(full=True, average=EMA, total_steps=6) for _ in range(3))
    begun = straight.adapter()
    assert begun.keys() == dict(straight.state.trainable.transformer.named_parameters()).keys()
    losses = train(straight)
    trained = straight.adapter()
    unmoved = {name for name in begun if torch.equal(begun[name], trained[name])}
    assert unmoved == set()
    early = train(first, 3)
    saved = save_checkpoint(first.state, tmp_path, facts=first.facts)
    assert find_checkpoint(tmp_path, "latest") == saved
    assert restore(second.state, saved, second.facts) == ()
    assert early + train(second) == losses
    assert same(trained, second.adapter())
    assert same(straight.state.average.tensors(), second.state.average.tensors())


def test_full_checkpoints_hold_folders_that_diffusers_loads(small_run: Callable[..., Any], tmp_path: Path) -> None:
    run = small_run(full=True, average=EMA, total_steps=4)
    train(run)
    saved = save_checkpoint(run.state, tmp_path, facts=run.facts)
    loaded = LTXVideoTransformer3DModel.from_pretrained(saved, subfolder="transformer")
    assert same(dict(loaded.state_dict()), dict(run.state.trainable.transformer.state_dict()))
    averaged = LTXVideoTransformer3DModel.from_pretrained(saved / "ema", subfolder="transformer")
    average = run.state.average.tensors()
    assert same({name: p.detach() for name, p in averaged.named_parameters()}, {n: average[n] for n, _ in
                averaged.named_parameters()})  # fmt: skip
    (saved / "transformer/config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json has"):
        find_checkpoint(tmp_path, "latest")


def test_decay_spares_scales_shifts_and_tables(small_run: Callable[..., Any]) -> None:
    run = small_run(full=True)
    decayed, spared = run.state.optimizer.param_groups
    names = {id(parameter): name for name, parameter in run.state.trainable.parameters.items()}
    assert (decayed["weight_decay"] > 0, spared["weight_decay"]) == (True, 0.0)
    assert all(names[id(p)].endswith(".weight") and p.ndim == 2 for p in decayed["params"])
    found = {names[id(p)] for p in spared["params"]}
    assert {"scale_shift_table", "transformer_blocks.0.scale_shift_table", "transformer_blocks.0.attn1.norm_q.weight",
            "proj_in.bias"} <= found  # fmt: skip
    assert [names[id(p)] for group in (decayed, spared) for p in group["params"]] == list(run.adapter())


def test_the_base_can_be_worn_only_before_the_first_step(small_run: Callable[..., Any]) -> None:
    run = small_run(full=True, total_steps=2)
    with run.state.wearing("base"):
        pass
    train(run)
    with pytest.raises(UserError, match="the base model is gone"), run.state.wearing("base"):
        pass


def test_weights_of_another_format_than_the_optimizers_are_refused(small_run: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"weights are torch\.float32, the optimizer trains torch\.bfloat16"):
        small_run(full=True, optimizer="adamw_bf16")
