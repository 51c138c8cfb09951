"""Optimizers in whole runs: what is sampled, where gradients go, and continuing bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from simpletuner.core.errors import UserError
from simpletuner.training.checkpoint import restore, save_checkpoint
from simpletuner.training.fit import fit

RELEASE = {"optimizer_release_gradients": True, "grad_clip_method": "value"}
# One of each family; the other names differ in the class alone (`test_optimizers.py` has them all).
FAMILIES = [
    "optimi-lion", "bnb-ademamix8bit-paged", "muon", "soap", "prodigy", "adamw_schedulefree", "torch-adafactor",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("optimi-adan", "bnb-adamw8bit", "bnb-lion8bit-paged", "adamw_schedulefree+no_kahan", "torch-sgd")
    ),
]  # fmt: skip
# bitsandbytes says on a machine without CUDA that nothing is paged there.
pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")


def train(run: Any, until: int | None = None) -> list[float]:
    return [event.loss for event in fit(run.state, run.objective, stop=lambda: run.state.step == until)]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def adapter_of(checkpoint: Path) -> dict[str, Tensor]:
    return load_file(checkpoint / "pytorch_lora_weights.safetensors")


@pytest.mark.parametrize("optimizer", FAMILIES)
def test_a_run_learns_and_resumes_bit_for_bit(small_run: Callable[..., Any], tmp_path: Path, optimizer: str) -> None:
    rate = 1.0 if optimizer == "prodigy" else 1e-2
    settings: dict[str, Any] = {"optimizer": optimizer, "total_steps": 6, "learning_rate": rate, "accumulation": 2}
    try:
        straight, first, second = (small_run(**settings) for _ in range(3))
    except UserError as error:
        pytest.skip(str(error))
    begun = straight.adapter()
    losses = train(straight)
    assert not same(begun, straight.adapter())
    early = train(first, 3)
    saved = save_checkpoint(first.state, tmp_path, facts=first.facts)
    assert restore(second.state, saved, second.facts) == ()
    assert early + train(second) == losses
    assert same(straight.adapter(), second.adapter())


@pytest.mark.parametrize("optimizer", ["adamw_schedulefree", "adamw_schedulefree+no_kahan"])
def test_what_is_saved_and_shown_is_the_average_and_training_does_not_notice(
    small_run: Callable[..., Any], tmp_path: Path, optimizer: str
) -> None:
    pytest.importorskip("schedulefree")
    run, undisturbed = (small_run(optimizer=optimizer, total_steps=6) for _ in range(2))
    train(run, 4)
    trained = run.adapter()
    with run.state.wearing("adapter"):
        shown = run.adapter()
    assert same(trained, run.adapter())
    assert not same(trained, shown)
    saved = save_checkpoint(run.state, tmp_path, facts=run.facts)
    assert same(adapter_of(saved), {f"transformer.{name}": tensor for name, tensor in shown.items()})
    train(run)
    train(undisturbed)
    assert same(run.adapter(), undisturbed.adapter())


def test_released_gradients_train_alike_and_resume(small_run: Callable[..., Any], tmp_path: Path) -> None:
    clipped = {"grad_clip_method": "value", "max_grad_norm": 1e-3}
    plain = small_run(total_steps=5, updates=clipped)
    straight, first, second = (small_run(total_steps=5, updates={**RELEASE, **clipped}) for _ in range(3))
    losses = train(straight)
    assert train(plain) == losses
    assert same(plain.adapter(), straight.adapter())
    early = train(first, 2)
    saved = save_checkpoint(first.state, tmp_path, facts=first.facts)
    with pytest.raises(UserError, match="optimizer_release_gradients"):
        restore(small_run(total_steps=5, updates=clipped).state, saved, first.facts)
    assert restore(second.state, saved, second.facts) == ()
    assert early + train(second) == losses
    assert same(straight.adapter(), second.adapter())


def test_gradients_that_are_kept_and_zeroed_train_alike(small_run: Callable[..., Any]) -> None:
    dropping, keeping = (small_run(total_steps=4, accumulation=2, keeps_gradients=keeps) for keeps in (False, True))
    assert train(dropping) == train(keeping)
    assert same(dropping.adapter(), keeping.adapter())
    assert all(parameter.grad is None for parameter in dropping.state.trainable.parameters.values())
    kept = [parameter.grad for parameter in keeping.state.trainable.parameters.values()]
    assert all(gradient is not None and not gradient.any() for gradient in kept)


def test_gradient_precision_decides_where_they_add_up(small_run: Callable[..., Any]) -> None:
    def sums(**settings: Any) -> bool:
        return small_run(optimizer="adamw_bf16", **settings).state.sums is not None

    assert sums(accumulation=2)
    assert sums(accumulation=2, gradient_precision="fp32")
    assert not sums(accumulation=2, gradient_precision="unmodified")
    assert not sums(gradient_precision="fp32")


def test_an_optimizer_that_limits_itself_sees_gradients_as_they_are(small_run: Callable[..., Any]) -> None:
    clipped, plain = (
        small_run(optimizer="prodigy", total_steps=3, learning_rate=1.0, updates={"max_grad_norm": limit})
        for limit in (1e-6, 0.0)
    )
    assert train(clipped) == train(plain)
    assert same(clipped.adapter(), plain.adapter())
