"""The model inside the package: complete, small, and at home in plain Diffusers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from simpletuner.config.sections.model import ModelSection
from simpletuner.models.ltxvideo.family import FAMILY
from simpletuner.recipes.demo import MODEL

LIMIT_BYTES = 12_000_000
# Runs where this project cannot be imported.
PLAIN = """
import sys
import torch
from diffusers import LTXConditionPipeline, LTXImageToVideoPipeline, LTXPipeline
from PIL import Image

folder = sys.argv[1]
common = dict(prompt="A large red circle moves right across a teal background.", negative_prompt="",
              width=64, height=64, num_frames=9, num_inference_steps=2, output_type="np", max_sequence_length=128)
picture = Image.new("RGB", (64, 64), "teal")
for pipeline, more in ((LTXPipeline, {}), (LTXImageToVideoPipeline, {"image": picture}),
                       (LTXConditionPipeline, {}), (LTXConditionPipeline, {"image": picture})):
    pipe = pipeline.from_pretrained(folder, torch_dtype=torch.float32)
    frames = pipe(**common, **more, generator=torch.Generator().manual_seed(0)).frames
    assert frames.shape == (1, 9, 64, 64, 3), frames.shape
    assert not any(name.split(".")[0] == "simpletuner" for name in sys.modules)
print("fine")
"""


def test_it_is_complete_and_small() -> None:
    source = FAMILY.resolve(ModelSection(pretrained_model_name_or_path=str(MODEL)))
    assert (source.release, source.positions) == ("0.9.5", "causal")
    assert sum(path.stat().st_size for path in MODEL.rglob("*") if path.is_file()) <= LIMIT_BYTES
    for path in MODEL.rglob("*.safetensors"):
        weights = load_file(path)
        assert all(value.isfinite().all() for value in weights.values())
        assert {value.dtype for value in weights.values()} == {torch.bfloat16}


@pytest.mark.slow
def test_plain_diffusers_loads_and_runs_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", PLAIN, str(MODEL)],
        capture_output=True, text=True, cwd=tmp_path, timeout=600, check=False,
    )  # fmt: skip
    assert done.stdout.strip().endswith("fine"), done.stderr[-2000:]
