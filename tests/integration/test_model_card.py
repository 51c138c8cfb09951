"""The code on a model card runs: against the small checkpoint, with weights of every kind that a run uploads."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from simpletuner.config.lycoris_file import LycorisFile
from simpletuner.config.sections.adapter import AdapterSection
from simpletuner.events.sinks.hub_card import WEIGHTS_NAME, CardFacts, write_card
from simpletuner.models.adapters.applied import apply_adapters
from simpletuner.models.adapters.full import build_full
from simpletuner.models.adapters.lora import build_lora
from simpletuner.models.adapters.lycoris import LycorisAdapter
from simpletuner.models.adapters.weights_file import read_weights_file
from simpletuner.models.ltxvideo.family import FAMILY
from simpletuner.validation.video_file import read_video

pytestmark = pytest.mark.needs_torch

LAYER = "transformer_blocks.0.attn1.to_q"
OPTIONS = {
    "validation_resolution": "64x32", "validation_num_video_frames": 9, "validation_num_inference_steps": 2,
    "validation_guidance": 3.0, "validation_negative_prompt": "blurry", "framerate": 12.0,
}  # fmt: skip


def shake(parameters: dict[str, nn.Parameter]) -> None:
    with torch.no_grad():
        for number, parameter in enumerate(parameters.values()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))


def write_weights(kind: str, miniature: Path, folder: Path) -> None:
    transformer = FAMILY.load_transformer_at(str(miniature), torch.float32)
    adapter: Any
    if kind == "full":
        adapter = build_full(transformer, FAMILY, AdapterSection(), None, torch.float32, 0)
    elif kind == "lycoris":
        file = LycorisFile(algo="lokr", multiplier=1.0, linear_dim=4, linear_alpha=1, factor=4,
                           apply_preset={"target_module": ["LTXAttention"]})  # fmt: skip
        adapter = LycorisAdapter(transformer, file, ["LTXAttention"], dtype=torch.float32, seed=0)
    else:
        adapter = build_lora(transformer, FAMILY, AdapterSection(lora_rank=4), None, torch.float32, 0)
    shake(adapter.parameters())
    adapter.save(folder / adapter.weights_name, {})


@pytest.mark.parametrize(
    "kind", ["lora", pytest.param("lycoris", marks=pytest.mark.slow), pytest.param("full", marks=pytest.mark.slow)]
)
def test_the_code_makes_a_video_with_the_weights(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder = tmp_path / "me" / "films"
    folder.mkdir(parents=True)
    write_weights(kind, miniature, folder)
    (tmp_path / miniature.name).symlink_to(miniature)  # the card calls a folder by its last name
    options = {**OPTIONS, "pretrained_model_name_or_path": str(miniature),
               "model_type": "full" if kind == "full" else "lora",
               "lora_type": "lycoris" if kind == "lycoris" else "standard"}  # fmt: skip
    card = write_card(CardFacts("me/films", "night", 7, options, prompts=[{"nickname": "a", "prompt": "a red ball"}]))
    code = re.search(r"^(```+)python\n(.*?)\n\1$", card, re.S | re.M)[2]  # type: ignore[index]
    monkeypatch.chdir(tmp_path)
    if kind == "lycoris":  # what the Hub would have downloaded
        monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, file: str(tmp_path / name / file))
    told: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own
        exec(code, told)
    frames, rate = read_video(tmp_path / "output.mp4")
    assert (len(frames), rate) == (9, 12.0)
    layer = told["pipeline"].transformer.get_submodule(LAYER)
    inputs = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        found = layer(inputs).float()
        base = FAMILY.load_transformer_at(str(miniature), torch.float32)
        before = base.get_submodule(LAYER)(inputs.float())
        if kind == "full":
            expected = FAMILY.load_transformer_at(str(folder), torch.float32).get_submodule(LAYER)(inputs.float())
        else:
            with apply_adapters(base, FAMILY, [read_weights_file(folder / WEIGHTS_NAME)]).shown():
                expected = base.get_submodule(LAYER)(inputs.float())
    assert (expected - before).abs().max() > 0.05
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.05)
