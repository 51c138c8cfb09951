"""A first frame with a noise level of its own: equal to Diffusers' time per token, without its memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import LTXVideoTransformer3DModel as PLAIN
from peft import LoraConfig
from torch import Tensor, nn

from simpletuner.config.catalogs.precisions import PRECISIONS
from simpletuner.config.lycoris_file import LycorisFile
from simpletuner.config.sections.adapter import AdapterSection
from simpletuner.config.sections.memory import MemorySection
from simpletuner.config.sections.model import ModelSection
from simpletuner.config.sections.optimizer import OptimizerSection
from simpletuner.config.sections.precision import PrecisionSection
from simpletuner.config.sections.schedule import ScheduleSection
from simpletuner.models.adapters.lora import attach_lora
from simpletuner.models.ltxvideo.family import FAMILY
from simpletuner.models.ltxvideo.loading import build_module
from simpletuner.models.ltxvideo.packing import pack, unpack
from simpletuner.models.ltxvideo.positions import token_coordinates
from simpletuner.models.ltxvideo.transformer import adapter_targets
from simpletuner.training.build import build_trainable

CPU = torch.device("cpu")
LOKR = LycorisFile(algo="lokr", multiplier=1.0, linear_alpha=1, full_matrix=True, factor=4)
SIGMAS, FIRST = torch.tensor([0.9513, 0.501]), torch.tensor([0.0, 0.48])


def inputs(frames: int = 3, height: int = 2, width: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "noised_latents": torch.randn(2, 128, frames, height, width, generator=generator),
        "sigmas": SIGMAS,
        "prompt_embeds": torch.randn(2, 8, 64, generator=generator),
        "prompt_mask": torch.arange(8).expand(2, -1) < 5,
        "frame_rates": torch.tensor([25.0, 8.0]),
    }


def with_lora(source: Any) -> nn.Module:
    torch.manual_seed(1)
    transformer = FAMILY.load_transformer(source, torch.float32, CPU)
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_out.0", "net.2"], init_lora_weights=False))
    return transformer


def per_token(transformer: nn.Module, source: Any, given: dict[str, Tensor]) -> Tensor:
    """The same call as Diffusers' image-to-video pipelines make it: a time [B, S] for every token."""
    dtype = transformer.get_parameter("scale_shift_table").dtype
    shape = tuple(given["noised_latents"].shape[2:])
    times = SIGMAS[:, None].repeat(1, shape[0] * shape[1] * shape[2])
    times[:, : shape[1] * shape[2]] = FIRST[:, None]
    tokens = transformer(
        hidden_states=pack(given["noised_latents"]).to(dtype),
        encoder_hidden_states=given["prompt_embeds"].to(dtype),
        timestep=times * 1000,
        encoder_attention_mask=given["prompt_mask"],
        video_coords=token_coordinates(source.positions, *shape, given["frame_rates"]),
        return_dict=False,
    )[0]
    return unpack(tokens, *shape).float()


def gradients(transformer: nn.Module) -> dict[str, Tensor]:
    found = {name: weight.grad.clone() for name, weight in transformer.named_parameters() if weight.grad is not None}
    transformer.zero_grad()
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
def test_equals_a_time_per_token_forward_and_backward(resolved, checkpointing):
    source, given = resolved("0.9.5"), inputs()
    transformer = with_lora(source)
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    theirs = per_token(transformer, source, given)
    theirs.square().mean().backward()
    expected = gradients(transformer)
    ours = FAMILY.predict(transformer, source, **given, first_frame_sigmas=FIRST)
    ours.square().mean().backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    found = gradients(transformer)
    assert found.keys() == expected.keys()
    assert found
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7)
    plain = FAMILY.predict(transformer, source, **given)
    assert not torch.allclose(plain, ours, atol=1e-3)


def test_full_training_reaches_the_tables_of_times(resolved):
    source, given = resolved("0.9.5"), inputs()
    transformer = FAMILY.load_transformer(source, torch.float32, CPU).requires_grad_(True)
    per_token(transformer, source, given).square().mean().backward()
    expected = gradients(transformer)
    FAMILY.predict(transformer, source, **given, first_frame_sigmas=FIRST).square().mean().backward()
    for name, gradient in gradients(transformer).items():
        # As vectors: single numbers are differences of large sums.
        assert ((gradient - expected[name]).norm() / expected[name].norm()).item() < 1e-5, name


def test_in_bf16_it_is_as_close_as_rounding_allows(resolved):
    source, given = resolved("0.9.5"), inputs()
    exact = FAMILY.predict(with_lora(source), source, **given, first_frame_sigmas=FIRST)
    rounded = FAMILY.predict(with_lora(source).to(torch.bfloat16), source, **given, first_frame_sigmas=FIRST)
    assert rounded.dtype == torch.float32
    assert ((rounded - exact).abs().mean() / exact.abs().mean()).item() < 0.05


def test_equal_levels_are_the_plain_call_and_the_model_is_left_as_it_was(resolved):
    source, given = resolved("0.9.5"), inputs()
    transformer = with_lora(source)
    before = FAMILY.predict(transformer, source, **given)
    same = FAMILY.predict(transformer, source, **given, first_frame_sigmas=SIGMAS)
    torch.testing.assert_close(same, before, rtol=1e-5, atol=1e-6)
    assert torch.equal(FAMILY.predict(transformer, source, **given), before)
    assert not transformer.norm_out._forward_hooks


@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 1, 2), (4, 2, 1)])
def test_few_tokens_per_frame(resolved, shape):
    source, given = resolved("0.9.5"), inputs(*shape)
    transformer = with_lora(source)
    ours = FAMILY.predict(transformer, source, **given, first_frame_sigmas=FIRST)
    torch.testing.assert_close(ours, per_token(transformer, source, given), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("trains", ["all", "lora"])
def test_the_model_computes_what_diffusers_does(resolved, trains):
    """Predictions at a time per clip and per token, and gradients, against the plain class and PEFT's plain layers."""
    source, given = resolved("0.9.5"), inputs()
    found = []
    for load in (FAMILY.load_transformer, lambda source, *to: build_module(PLAIN, source.transformer, *to)):
        torch.manual_seed(1)
        model = load(source, torch.float32, CPU).requires_grad_(trains == "all")
        if trains == "lora":
            settings = AdapterSection(lora_rank=2, lora_alpha=3, lora_dropout=0.0)
            attach_lora(model, adapter_targets(model, "attention"), settings, torch.float32, 1)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.data.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(len(name)))
        if load is not FAMILY.load_transformer:
            for layer in model.modules():
                vars(layer).get("lora_variant", {}).clear()
        prediction = FAMILY.predict(model, source, **given), per_token(model, source, given)
        sum(part.square().mean() for part in prediction).backward()
        found.append((prediction, gradients(model)))
    (ours, own), (theirs, expected) = found
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert own.keys() == expected.keys()
    assert len(own) > 30
    for name, gradient in own.items():
        assert ((gradient - expected[name]).norm() / expected[name].norm()).item() < 1e-5, name


def kept_bytes(compute: Any) -> int:
    """Bytes of the tensors that autograd keeps between forward and backward, each storage once."""
    storages: dict[int, int] = {}

    def remember(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    kept = []
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        kept.append(compute())
    return sum(storages.values())


def test_memory_is_that_of_a_plain_step_not_of_a_time_per_token(resolved):
    source, given = resolved("0.9.5"), inputs(4, 8, 8)
    transformer = with_lora(source)
    plain = kept_bytes(lambda: FAMILY.predict(transformer, source, **given))
    ours = kept_bytes(lambda: FAMILY.predict(transformer, source, **given, first_frame_sigmas=FIRST))
    theirs = kept_bytes(lambda: per_token(transformer, source, given))
    # A float32 number per token and channel: the time per token keeps several of them in each block.
    activation = given["noised_latents"][:, 0].numel() * transformer.proj_in.out_features * 4
    assert ours - plain < activation / 2
    assert theirs - plain > 4 * activation * len(transformer.transformer_blocks)


@pytest.mark.parametrize(
    ("precision", "lycoris", "checkpointing"),
    [("no_change", LOKR, True), ("int8-quanto", None, True), ("fp8-torchao", LOKR, False), ("nf4-bnb", None, False)],
)
def test_works_with_every_kind_of_adapter_and_base(miniature, precision, lycoris, checkpointing):
    row = PRECISIONS[precision]
    if row.extra:
        pytest.importorskip({"quanto": "optimum.quanto", "bnb": "bitsandbytes", "torchao": "torchao"}[row.extra])
    source = FAMILY.resolve(ModelSection(pretrained_model_name_or_path=str(miniature)))
    config = SimpleNamespace(
        adapter=AdapterSection(lora_type="lycoris" if lycoris else "standard", lora_rank=4),
        lycoris=lycoris,
        model=ModelSection(model_type="lora"),
        precision=PrecisionSection(base_model_precision=precision),
        memory=MemorySection(gradient_checkpointing=checkpointing),
        optimizer=OptimizerSection(),
        schedule=ScheduleSection(),
    )
    trainable = build_trainable(FAMILY, source, config, CPU)
    with torch.no_grad():
        for parameter in trainable.parameters.values():
            parameter.add_(0.02)
    channels, width = FAMILY.input_widths(trainable.transformer)
    given = inputs()
    given["prompt_embeds"] = torch.randn(2, 8, width, generator=torch.Generator().manual_seed(2))
    given["noised_latents"] = given["noised_latents"][:, :channels]
    ours = FAMILY.predict(trainable.transformer, source, **given, first_frame_sigmas=FIRST)
    ours.square().mean().backward()
    expected = {name: parameter.grad.clone() for name, parameter in trainable.parameters.items()}
    trainable.transformer.zero_grad()
    for parameter in trainable.parameters.values():
        parameter.grad = None
    theirs = per_token(trainable.transformer, source, given)
    theirs.square().mean().backward()
    # In bf16: the two orders of summing the rows' gradients round differently.
    assert ((ours - theirs).norm() / theirs.norm()).item() < 0.02
    for name, parameter in trainable.parameters.items():
        assert ((expected[name] - parameter.grad).norm() / (parameter.grad.norm() + 1e-6)).item() < 0.1
