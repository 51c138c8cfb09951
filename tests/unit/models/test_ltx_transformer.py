"""The call of the transformer, and which of its layers get an adapter."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from simpletuner.core.errors import UserError
from simpletuner.models.ltxvideo.family import FAMILY
from simpletuner.models.ltxvideo.transformer import without_padding

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def transformer(resolved):
    return FAMILY.load_transformer(resolved("0.9.5"), torch.float32, CPU)


def inputs(batch=2):
    generator = torch.Generator().manual_seed(0)
    return {
        "noised_latents": torch.randn(batch, 128, 2, 2, 3, generator=generator),
        "sigmas": torch.tensor([0.9513, 0.501])[:batch],
        "prompt_embeds": torch.randn(batch, 8, 64, generator=generator),
        "prompt_mask": torch.arange(8).expand(batch, -1) < 5,
        "frame_rates": torch.tensor([25.0, 8.0])[:batch],
    }


def captured(transformer, source, **arguments):
    seen = {}
    hook = transformer.register_forward_pre_hook(lambda _, __, kwargs: seen.update(kwargs), with_kwargs=True)
    try:
        prediction = FAMILY.predict(transformer, source, **arguments)
    finally:
        hook.remove()
    return prediction, seen


def test_call(transformer, resolved):
    prediction, seen = captured(transformer, resolved("0.9.5"), **inputs())
    assert prediction.shape == (2, 128, 2, 2, 3)
    assert prediction.dtype == torch.float32
    assert seen["timestep"].dtype == torch.float32
    torch.testing.assert_close(seen["timestep"], torch.tensor([951.3, 501.0]))
    assert seen["hidden_states"].shape == (2, 12, 128)
    assert seen["video_coords"].shape == (2, 3, 12)
    assert seen["video_coords"][:, 0].amax(1).tolist() == pytest.approx([1 / 25, 1 / 8])  # each clip its own rate


def test_times_stay_float32_in_a_bf16_model(resolved):
    model = FAMILY.load_transformer(resolved("0.9.5"), torch.bfloat16, CPU)
    prediction, seen = captured(model, resolved("0.9.5"), **inputs())
    assert seen["hidden_states"].dtype == seen["encoder_hidden_states"].dtype == torch.bfloat16
    torch.testing.assert_close(seen["timestep"], torch.tensor([951.3, 501.0]))
    assert seen["video_coords"].dtype == torch.float32
    assert prediction.dtype == torch.float32


def test_padding_behind_all_prompts_is_left_out(transformer, resolved):
    source, given = resolved("0.9.5"), inputs()
    whole, seen = captured(transformer, dataclasses.replace(source, compiled=True), **given)
    assert seen["encoder_hidden_states"].shape[1] == seen["encoder_attention_mask"].shape[1] == 8  # one shape for all
    short, seen = captured(transformer, source, **given)
    assert seen["encoder_hidden_states"].shape[1] == 5
    assert seen["encoder_attention_mask"] is None
    torch.testing.assert_close(short, whole)
    given["prompt_mask"] = torch.arange(8).expand(2, -1) < torch.tensor([[3], [6]])
    short, seen = captured(transformer, source, **given)
    assert torch.equal(seen["encoder_attention_mask"], given["prompt_mask"][:, :6])
    torch.testing.assert_close(short, captured(transformer, dataclasses.replace(source, compiled=True), **given)[0])
    given["prompt_mask"] = torch.zeros(2, 8, dtype=torch.bool)
    assert captured(transformer, source, **given)[1]["encoder_hidden_states"].shape[1] == 8
    on_device = torch.ones(2, 8, dtype=torch.bool, device="meta")  # whoever reads it raises
    assert without_padding(given["prompt_embeds"], on_device)[1] is on_device


def test_padding_does_not_reach_the_output_and_words_do(transformer, resolved):
    """Trap 28: the mask of the prompt is used, and not inverted."""
    source, given = resolved("0.9.5"), inputs()
    given["prompt_mask"] = torch.arange(8).expand(2, -1) < torch.tensor([[3], [6]])
    for compiled in (False, True):  # without the padding behind both, and with it
        source = dataclasses.replace(source, compiled=compiled)
        reference = FAMILY.predict(transformer, source, **given)
        for position, same in [(7, [True, True]), (4, [True, False]), (2, [False, False])]:
            embeds = given["prompt_embeds"].clone()
            embeds[:, position] += 1
            changed = FAMILY.predict(transformer, source, **{**given, "prompt_embeds": embeds})
            assert [torch.equal(*pair) for pair in zip(changed, reference, strict=True)] == same


def test_clips_of_a_batch_do_not_mix(transformer, resolved):
    source, given = resolved("0.9.5"), inputs()
    together = FAMILY.predict(transformer, source, **given)
    for number in range(2):
        alone = FAMILY.predict(transformer, source, **{k: v[number : number + 1] for k, v in given.items()})
        torch.testing.assert_close(alone[0], together[number], rtol=1e-4, atol=1e-5)


def test_loaded_weights_are_frozen_and_in_evaluation_mode(transformer):
    assert not transformer.training
    assert not any(parameter.requires_grad for parameter in transformer.parameters())


def test_target_sets(transformer):
    blocks = transformer.config.num_layers
    attention = FAMILY.adapter_targets(transformer, "attention")
    assert len(attention) == 8 * blocks  # 224 on the 2B model of 28 blocks, 384 on the 13B one of 48
    assert all(name.split(".")[2] in ("attn1", "attn2") for name in attention)
    assert len(FAMILY.adapter_targets(transformer, "all")) == 10 * blocks + 7
    assert FAMILY.adapter_targets(transformer, ["attn1.to_q", "proj_in"]) == [
        "proj_in", *(f"transformer_blocks.{i}.attn1.to_q" for i in range(blocks))
    ]  # fmt: skip


def test_target_that_matches_nothing_is_refused(transformer):
    with pytest.raises(UserError, match=r"to_qq matches no layer.*attn1\.to_q.*Did you mean"):
        FAMILY.adapter_targets(transformer, ["to_k", "to_qq"])
    with pytest.raises(UserError, match="q matches no layer"):
        FAMILY.adapter_targets(transformer, ["q"])  # endings count by whole words
