"""Memory that runs out anywhere, at random moments of a whole run: its adapter is the one of the run without faults."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from projects import Project
from safetensors.torch import load_file

from simpletuner.cli.main import main
from simpletuner.events.sinks.journal import read_journal
from simpletuner.validation.report import REPORT

STEPS = 8
SHOWN: dict[str, Any] = {
    "validation_disable": "false", "validation_prompt": "a red circle moves over a blue lake",
    "validation_resolution": "64x64", "validation_num_video_frames": 9, "validation_num_inference_steps": 3,
    "validation_step_interval": 2, "max_train_steps": STEPS, "gradient_checkpointing_blocks": 0,
    "checkpoint_step_interval": 4, "mixed_precision": "no",
}  # fmt: skip


class Shortage:
    """Raises what a full card raises, at chosen calls of one place."""

    def __init__(self, moments: set[int]) -> None:
        self.moments, self.calls, self.faults = moments, 0, 0

    def strike(self) -> None:
        self.calls += 1
        if self.calls in self.moments:
            self.faults += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def train(project: Project, output: Path, **more: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    assert main(project.arguments(output_dir=output, **{**SHOWN, **more})) == 0
    return load_file(output / "pytorch_lora_weights.safetensors"), list(read_journal(output))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_adapter_is_that_of_the_run_without_faults(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    plain, events = train(project, tmp_path / "plain")
    measured = [event for event in events if event["kind"] == "memory_measured"]
    assert [event["phase"] for event in measured] == ["training", "denoising videos", "decoding videos"]
    assert measured[0]["measured_bytes"] > 0 < measured[0]["forecast_bytes"]
    assert "Memory: forecast and measured" in (tmp_path / "plain" / REPORT).read_text(encoding="utf-8")

    draw = random.Random(seed)
    # Two calls are the probe's; the miniature's two blocks allow two turns of the dial.
    forward = Shortage({draw.randint(1, 2 + STEPS)})
    backward = Shortage({draw.randint(3, 2 + STEPS)})
    # The first call of each is the rehearsal's, which ends a run that cannot make its videos.
    denoising = Shortage(set(draw.sample(range(2, 14), 4)))
    decoding = Shortage(set(draw.sample(range(2, 7), 2)))
    model_forward, backwards = LTXVideoTransformer3DModel.forward, torch.autograd.backward

    def computing(self: Any, *args: Any, **kwargs: Any) -> Any:
        (forward if torch.is_grad_enabled() else denoising).strike()
        return model_forward(self, *args, **kwargs)

    def going_back(*args: Any, **kwargs: Any) -> Any:
        backwards(*args, **kwargs)
        backward.strike()  # after gradients have been added up, which must not count twice

    decode = AutoencoderKLLTXVideo.decode

    def decoding_one(self: Any, *args: Any, **kwargs: Any) -> Any:
        decoding.strike()
        return decode(self, *args, **kwargs)

    monkeypatch.setattr(LTXVideoTransformer3DModel, "forward", computing)
    monkeypatch.setattr(torch.autograd, "backward", going_back)
    monkeypatch.setattr(AutoencoderKLLTXVideo, "decode", decoding_one)
    faulty, events = train(project, tmp_path / "faulty")
    assert (forward.faults, backward.faults) == (1, 1)
    assert denoising.faults
    assert all(torch.equal(tensor, faulty[name]) for name, tensor in plain.items())
    told = [event["text"] for event in events if event["kind"] == "noticed" and event["severity"] == "warning"]
    assert sum("blocks are computed again in the backward pass" in text for text in told) == 2
    lost = [event["text"] for event in events if event["kind"] == "noticed" and event["severity"] == "error"]
    assert len(lost) == denoising.faults + decoding.faults
    assert all("no video" in text for text in lost)
    assert not any(event["kind"] == "step_skipped" for event in events)


@pytest.mark.slow
def test_a_run_without_the_probe_is_the_same(project: Project, tmp_path: Path) -> None:
    probed, _ = train(project, tmp_path / "probed", validation_disable="true")
    plain, events = train(project, tmp_path / "plain", validation_disable="true", memory_probe="false")
    assert all(torch.equal(tensor, probed[name]) for name, tensor in plain.items())
    assert not any(event["kind"] == "memory_measured" for event in events)
