"""A small folder of real clips, and small real encoders that keep the protocols of the family."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from simpletuner.data.probe import probe
from simpletuner.data.sample import CropPlan, FramePlan, Sample
from simpletuner.data.storage import LocalStorage
from simpletuner.events.types import Event

SIZE = 64
FRAMES = 9


class PoolingAutoencoder(nn.Module):
    """32x32x8 cells: means of pixels, lifted to 8 channels by a fixed linear map, then normalised."""

    mean, deviation = 3.0, 2.0

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Conv3d(3, 8, 1, bias=False)
        with torch.no_grad():
            self.lift.weight.copy_(torch.linspace(-1, 1, 24).reshape(8, 3, 1, 1, 1))
        self.seen: list[Tensor] = []

    def encode(self, pixels: Tensor) -> Tensor:
        self.seen.append(pixels)
        if pixels.dtype == torch.uint8:
            pixels = pixels.float() / 127.5 - 1
        first = nn.functional.avg_pool3d(pixels[:, :, :1], (1, 32, 32))
        rest = nn.functional.avg_pool3d(pixels[:, :, 1:], (8, 32, 32)) if pixels.shape[2] > 1 else first[:, :, :0]
        return (self.lift(torch.cat([first, rest], dim=2)) - self.mean) / self.deviation

    def decode(self, latents: Tensor, seed: int = 0) -> Tensor:
        raise AssertionError("caching never decodes latents")


class HashingPromptEncoder(nn.Module):
    """One token per word, the features of a word drawn from its hash; the last token ends the text."""

    def __init__(self, length: int, width: int = 6) -> None:
        super().__init__()
        self.length, self.width = length, width

    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        rows = [[*prompt.split()[: self.length - 1], "</s>"] for prompt in prompts]
        mask = torch.tensor([[i < len(row) for i in range(self.length)] for row in rows])
        words = [row + ["<pad>"] * (self.length - len(row)) for row in rows]
        return torch.stack([torch.stack([self._features(word) for word in row]) for row in words]), mask

    def lost_words(self, prompt: str) -> str:
        return " ".join(prompt.split()[self.length - 1 :])

    def _features(self, word: str) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:7], "big")
        return torch.randn(self.width, generator=torch.Generator().manual_seed(seed))


class Counted:
    """A loader that counts its calls and keeps nothing of what it made."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        self._make, self.calls = make, 0

    def __call__(self) -> nn.Module:
        self.calls += 1
        return self._make()


def write_clip(path: Path, level: int, frames: int = FRAMES, size: int = SIZE, rate: int = 25) -> None:
    """A flat grey clip: every pixel of every frame is `level`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        for _ in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((size, size, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def plan_sample(root: Path, name: str, *, dataset: str = "set", size: int = SIZE, frames: int = FRAMES) -> Sample:
    info = probe(LocalStorage(root), name)
    crop = CropPlan(size, size, 0, 0, size, size)
    return Sample(dataset, name, info, FramePlan(frames, 25.0, 0.0), crop, ("a caption",), 1)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Three flat clips, two of them with one stem: dark.mp4, dark.mkv (bright!), deep/grey.mp4."""
    root = tmp_path / "clips"
    write_clip(root / "dark.mp4", 0)
    write_clip(root / "dark.mkv", 255)
    write_clip(root / "deep" / "grey.mp4", 128)
    return root


@pytest.fixture
def samples(clips: Path) -> list[Sample]:
    return [plan_sample(clips, name) for name in ("dark.mp4", "dark.mkv", "deep/grey.mp4")]


@pytest.fixture
def events() -> list[Event]:
    return []
