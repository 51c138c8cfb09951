"""Prompt features, masks and lost words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from simpletuner.models.ltxvideo.family import FAMILY

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder(resolved):
    return FAMILY.load_prompt_encoder(resolved("0.9.5", tokenizer_max_length=16), torch.float32, CPU)


def test_shapes_and_masks(encoder):
    features, mask = encoder.encode(["a red circle", ""])
    assert features.shape == (2, 16, 64)
    assert mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [4, 1]  # three words and the end token; the empty prompt is the end token
    assert mask[:, 0].all()


def test_padding_is_attended_inside_the_encoder(encoder, resolved):
    longer = FAMILY.load_prompt_encoder(resolved("0.9.5", tokenizer_max_length=32), torch.float32, CPU)
    short_features, mask = encoder.encode(["a red circle"])
    long_features, _ = longer.encode(["a red circle"])
    tokens = int(mask.sum())
    # With an attention mask both would agree; the public checkpoints were trained without one.
    assert not torch.allclose(short_features[0, :tokens], long_features[0, :tokens], atol=1e-3)


def test_lost_words(encoder):
    assert encoder.lost_words("a red circle") == ""
    fits = " ".join(["red"] * 15)
    assert encoder.lost_words(fits) == ""
    assert encoder.lost_words(fits + " blue circle") == "blue circle"
    split = " ".join(["red"] * 14) + " zzzz blue"  # the unknown word is several tokens: told whole
    assert encoder.lost_words(split) == "zzzz blue"
    _, mask = encoder.encode([fits + " blue circle"])
    assert mask.all()


def test_missing_weights_are_told(checkpoint, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    from simpletuner.config.sections.model import ModelSection
    from simpletuner.core.errors import UserError

    folder = shutil.copytree(checkpoint("0.9.5"), tmp_path / "copy")
    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    tensors.pop("encoder.final_layer_norm.weight")
    save_file(tensors, path, {"format": "pt"})
    source = FAMILY.resolve(ModelSection(pretrained_model_name_or_path=str(folder)))
    with pytest.raises(UserError, match="lack 1 tensors of the text encoder"):
        FAMILY.load_prompt_encoder(source, torch.float32, CPU)


@pytest.mark.parametrize("precision", ["int8-quanto", "fp8-torchao", "nf4-bnb"])
def test_fewer_bits_give_nearly_the_same_features(resolved: Callable[..., Any], precision: str) -> None:
    pytest.importorskip({"int8": "optimum.quanto", "fp8": "torchao", "nf4": "bitsandbytes"}[precision.split("-")[0]])
    source = resolved("0.9.5", tokenizer_max_length=16)
    plain, _ = FAMILY.load_prompt_encoder(source, torch.bfloat16, CPU).encode(["a red circle moves"])
    stored, _ = FAMILY.load_prompt_encoder(source, torch.bfloat16, CPU, precision=precision).encode(
        ["a red circle moves"]
    )
    difference = ((stored - plain).norm() / plain.norm()).item()
    assert 0 < difference < (0.2 if "4" in precision else 0.05)
