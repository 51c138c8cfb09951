"""The small decoder of a TAE file: right shape, right layout, and nothing else is opened."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from simpletuner.core.errors import UserError
from simpletuner.models.ltxvideo.family import FAMILY
from simpletuner.models.ltxvideo.tiny_decoder import TinyDecoder, save_tiny_decoder

CPU = torch.device("cpu")


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return TinyDecoder(128, widths=(16, 8, 8, 8)).eval()


def test_one_latent_frame_is_a_picture_and_two_are_nine_frames(decoder):
    latents = torch.randn(1, 128, 2, 2, 3)
    pixels = decoder.decode(latents)
    assert pixels.shape == (1, 3, 9, 64, 96)
    assert pixels.dtype == torch.float32
    assert -1 <= pixels.min() <= pixels.max() <= 1
    assert decoder.decode(latents[:, :, :1]).shape == (1, 3, 1, 64, 96)
    assert decoder.decode(latents.expand(2, -1, -1, -1, -1)).shape[0] == 2


def test_a_frame_knows_its_past_and_not_its_future(decoder):
    latents = torch.randn(1, 128, 3, 2, 2)
    changed = latents.clone()
    changed[:, :, 2] += 1
    before, after = decoder.decode(latents), decoder.decode(changed)
    assert torch.equal(before[:, :, :9], after[:, :, :9])
    assert not torch.equal(before[:, :, 9:], after[:, :, 9:])


def test_latents_beyond_three_deviations_change_little(decoder):
    far, further = torch.full((1, 128, 1, 1, 1), 30.0), torch.full((1, 128, 1, 1, 1), 60.0)
    assert torch.allclose(decoder.decode(far), decoder.decode(further), atol=1e-4)


def test_it_survives_its_file_and_brings_its_widths(decoder, tmp_path):
    save_tiny_decoder(decoder, tmp_path / "tae.safetensors")
    names = set(load_file(tmp_path / "tae.safetensors"))
    assert {"decoder.1.weight", "decoder.3.conv.0.weight", "decoder.7.conv.weight", "decoder.22.bias"} <= names
    assert "decoder.8.bias" not in names
    loaded = FAMILY.load_tiny_decoder(tmp_path / "tae.safetensors", CPU)
    latents = torch.randn(1, 128, 2, 2, 2)
    assert torch.equal(loaded.decode(latents), decoder.decode(latents))


def test_an_encoder_in_the_same_file_is_passed_over(decoder, tmp_path):
    save_file({**decoder.state_dict(), "encoder.0.weight": torch.zeros(2)}, tmp_path / "tae.safetensors")
    assert FAMILY.load_tiny_decoder(tmp_path / "tae.safetensors", CPU).channels == 128


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: torch.save({"a": torch.zeros(1)}, path), "cannot be read"),
        (lambda path: save_file({"a": torch.zeros(1)}, path), "no preview decoder"),
        (lambda path: save_tiny_decoder(TinyDecoder(16, (8, 8, 8, 8)), path), "a decoder of 16 channels"),
        (lambda path: save_tiny_decoder(TinyDecoder(128, (8, 8, 8, 8), (1, 2, 2)), path), "128 channels, 4 frames"),
        (lambda path: save_tiny_decoder(TinyDecoder(128, (8, 8, 8, 8), patch=2), path), "8 frames and 16 pixels"),
    ],
)
def test_other_files_are_refused(make, told, tmp_path):
    make(tmp_path / "tae.safetensors")
    with pytest.raises(UserError, match=told):
        FAMILY.load_tiny_decoder(tmp_path / "tae.safetensors", CPU)


def test_a_file_without_one_of_its_layers_is_refused(decoder, tmp_path):
    tensors = decoder.state_dict()
    tensors.pop("decoder.10.conv.2.weight")
    save_file(tensors, tmp_path / "tae.safetensors")
    with pytest.raises(UserError, match="no preview decoder"):
        FAMILY.load_tiny_decoder(tmp_path / "tae.safetensors", CPU)
