"""Token order and token coordinates against their formulas."""

from __future__ import annotations

import pytest
import torch

from simpletuner.models.ltxvideo.packing import pack, unpack
from simpletuner.models.ltxvideo.positions import token_coordinates
from simpletuner.models.ltxvideo.weights import is_original, to_diffusers, to_original, transformer_names


def test_token_index_is_row_major_in_frame_row_column():
    latents = torch.randn(2, 5, 3, 4, 7)  # F, H and W differ, so that swapped axes show
    tokens = pack(latents)
    assert tokens.shape == (2, 3 * 4 * 7, 5)
    for f, y, x in [(0, 0, 0), (1, 2, 3), (2, 3, 6), (0, 3, 1)]:
        assert torch.equal(tokens[:, (f * 4 + y) * 7 + x], latents[:, :, f, y, x])
    assert torch.equal(unpack(tokens, 3, 4, 7), latents)


@pytest.mark.parametrize(("positions", "frames_at"), [("plain", [0, 8, 16, 24]), ("causal", [0, 1, 9, 17])])
def test_coordinates_by_formula_with_a_rate_per_clip(positions, frames_at):
    rates = torch.tensor([25.0, 8.0])
    coordinates = token_coordinates(positions, 4, 2, 3, rates)
    assert coordinates.shape == (2, 3, 24)
    assert coordinates.dtype == torch.float32
    for clip, rate in enumerate((25.0, 8.0)):
        for f in range(4):
            for y in range(2):
                for x in range(3):
                    expected = torch.tensor([frames_at[f] / rate, 32.0 * y, 32.0 * x])
                    torch.testing.assert_close(coordinates[clip, :, (f * 2 + y) * 3 + x], expected, rtol=1e-6, atol=0)


def test_conventions_differ_by_seven_frames_after_the_first():
    rates = torch.tensor([25.0])
    seconds = [token_coordinates(p, 5, 1, 1, rates)[0, 0] for p in ("plain", "causal")]
    assert seconds[0][0] == seconds[1][0] == 0
    torch.testing.assert_close(seconds[0][1:] - seconds[1][1:], torch.full((4,), 0.28))


PAIRS = [
    ("patchify_proj.weight", "proj_in.weight"),
    ("adaln_single.emb.timestep_embedder.linear_1.bias", "time_embed.emb.timestep_embedder.linear_1.bias"),
    ("transformer_blocks.3.attn1.q_norm.weight", "transformer_blocks.3.attn1.norm_q.weight"),
    ("transformer_blocks.3.attn2.k_norm.weight", "transformer_blocks.3.attn2.norm_k.weight"),
    ("transformer_blocks.3.ff.net.0.proj.weight", "transformer_blocks.3.ff.net.0.proj.weight"),
    ("scale_shift_table", "scale_shift_table"),
]


@pytest.mark.parametrize(("original", "diffusers"), PAIRS)
def test_names_both_ways(original, diffusers):
    assert to_diffusers("model.diffusion_model." + original) == diffusers
    assert to_original(diffusers) == original


def test_only_the_transformer_is_taken_from_a_full_file():
    names = ["model.diffusion_model.patchify_proj.weight", "vae.encoder.conv_in.conv.bias", "text.weight"]
    assert is_original(names)
    assert transformer_names(names) == {names[0]: "proj_in.weight"}
    assert not is_original(["proj_in.weight"])
