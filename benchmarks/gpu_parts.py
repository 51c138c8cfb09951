"""One part of the GPU benchmark: does what its argument, a JSON document, says and prints one line of JSON."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from linear_formats import measure_formats
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from simpletuner.config.catalogs.attention import ATTENTION
from simpletuner.config.sections.adapter import AdapterSection
from simpletuner.config.sections.average import AverageSection
from simpletuner.config.sections.flow import FlowSection
from simpletuner.config.sections.memory import MemorySection
from simpletuner.config.sections.model import ModelSection
from simpletuner.config.sections.optimizer import OptimizerSection
from simpletuner.config.sections.precision import PrecisionSection
from simpletuner.config.sections.schedule import ScheduleSection
from simpletuner.data.batch_rules import BatchRules
from simpletuner.data.batches import BatchStream
from simpletuner.data.sample import CropPlan, FramePlan, MediaInfo, Sample
from simpletuner.models.cost import ModelCost, TrainedPart, cost_source
from simpletuner.models.ltxvideo.architecture import AUTOENCODERS, TRANSFORMERS
from simpletuner.models.ltxvideo.attention import attend, choose_attention
from simpletuner.models.ltxvideo.autoencoder import LTXAutoencoder
from simpletuner.models.ltxvideo.family import FAMILY
from simpletuner.models.ltxvideo.frame_times import accept_frame_times
from simpletuner.models.ltxvideo.miniature import write_miniature
from simpletuner.objectives.flow_matching import FlowMatching
from simpletuner.runtime.host import find_host
from simpletuner.runtime.matrix_rate import measure_matrix_rate
from simpletuner.training.build import build_trainable
from simpletuner.training.fit import fit
from simpletuner.training.state import TrainState

SHAPES = {48: (2, 4, 6), 1296: (6, 12, 18), 2688: (7, 16, 24), 6144: (16, 16, 24)}  # latent frames, height, width
RELEASES = {"2B": "0.9.5", "13B": "0.9.7"}
TEXT_TOKENS, LORA_RANK, FRAME_RATE, CLIPS = 128, 16, 25.0, 4
MEASURED_SECONDS = 4.0
BF16 = torch.bfloat16


class RandomFamily:
    """LTX-Video whose transformer is not loaded but drawn, on the device itself."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config

    def __getattr__(self, name: str) -> Any:
        return getattr(FAMILY, name)

    def load_transformer(self, source: Any, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """All weights at once."""
        with torch.device("meta"):
            model: nn.Module = LTXVideoTransformer3DModel(**self._config)
        model = model.to(dtype).to_empty(device=device).requires_grad_(False)
        for name, tensor in model.state_dict().items():
            tensor.fill_(1.0) if "norm" in name else tensor.normal_(0.0, 0.02)
        return self._prepared(model)

    def transformer_in_pieces(self, source: Any) -> tuple[nn.Module, Iterator[tuple[str, Tensor]]]:
        """Weight after weight, for a base that is quantized as it comes."""
        with torch.device("meta"):
            shell: nn.Module = LTXVideoTransformer3DModel(**self._config)
        shapes = {name: tensor.shape for name, tensor in shell.state_dict().items()}
        device = find_host().device
        drawn = (
            (name, torch.randn(shape, device=device, dtype=BF16) * 0.02 + float("norm" in name))
            for name, shape in shapes.items()
        )
        return self._prepared(shell.requires_grad_(False)), drawn

    @staticmethod
    def _prepared(model: nn.Module) -> nn.Module:
        accept_frame_times(model)
        choose_attention(model, "diffusers")
        return model


# Steps ------------------------------------------------------------------------------------------


def train(order: dict[str, Any]) -> dict[str, Any]:
    """Optimizer steps: seconds, peak, useful rate."""
    host = find_host()
    with tempfile.TemporaryDirectory() as folder:
        family, cost = _family(order["size"], Path(folder))
        model_type, precision = order.get("model_type", "lora"), order.get("precision", "no_change")
        config = SimpleNamespace(
            model=ModelSection(
                model_type=model_type, dynamo_backend=order.get("backend", "no"), dynamo_mode=order.get("mode")
            ),
            adapter=AdapterSection(lora_rank=LORA_RANK, lora_dropout=0.0),
            average=AverageSection(),
            lycoris=None,
            precision=PrecisionSection(mixed_precision="bf16", base_model_precision=precision),
            memory=MemorySection(**order.get("memory", {"gradient_checkpointing": True})),
            optimizer=OptimizerSection(optimizer="adamw_bf16", max_grad_norm=1.0, grad_clip_method="norm"),
            schedule=ScheduleSection(learning_rate=1e-4, lr_scheduler="constant"),
        )
        source: Any = SimpleNamespace(positions="causal", compiled=config.model.dynamo_backend != "no")
        started = time.perf_counter()
        trainable = build_trainable(family, source, config, host.device, folder)
        state = TrainState.begin(trainable, _batches(order["tokens"], cost), config, 10**9)
        events = fit(state, FlowMatching(family, source, FlowSection(), 0), stop=lambda: False)
        built = time.perf_counter() - started
        first = _timed(lambda: next(events), host.device)
        next(events)
        count, seconds = _measured(lambda: next(events), host.device, order.get("seconds", MEASURED_SECONDS))
        kernels = _kernels(lambda: next(events), host.device, seconds)
    part = TrainedPart(
        kind=model_type, targets=tuple(getattr(trainable.adapter, "layers", ())), lora_rank=LORA_RANK, checkpointing=0.0
    )
    flops = cost.train_clip(order["tokens"], TEXT_TOKENS, part).total_flops
    text = f"built in {built:.1f} s, {kernels}" + (f", {trainable.compilation.news()}" if trainable.compilation else "")
    return {
        **_rates(order, flops, seconds),
        "first_seconds": first,
        "count": count,
        "pace": f"{order['tokens'] / seconds:,.0f} tokens",
        "text": text,
    }


def _family(size: str, folder: Path) -> tuple[Any, ModelCost]:
    if size == "miniature":
        path = write_miniature(folder / "miniature", "0.9.5")
        config = json.loads((path / "transformer" / "config.json").read_text(encoding="utf-8"))
        settings = ModelSection(pretrained_model_name_or_path=str(path))
        clean = {name: value for name, value in config.items() if not name.startswith("_")}
        return RandomFamily(clean), cost_source("ltxvideo").find(settings)
    settings = ModelSection(model_flavour=RELEASES[size])
    return RandomFamily(dict(TRANSFORMERS[size])), cost_source("ltxvideo").find(settings)  # type: ignore[index]


def _batches(tokens: int, cost: ModelCost) -> BatchStream:
    """An endless supply of random clips."""
    frames, height, width = SHAPES[tokens]
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(128, frames, height, width, generator=generator).to(BF16)
    text = torch.randn(TEXT_TOKENS, cost.text_width, generator=generator).to(BF16)
    mask = torch.arange(TEXT_TOKENS) < TEXT_TOKENS // 3
    pixels, count = (32 * width, 32 * height), 8 * (frames - 1) + 1
    info = MediaInfo("video", *pixels, FRAME_RATE, count, count / FRAME_RATE, 0, 1.0, "h264", 1, "1")
    plan, crop = FramePlan(count, FRAME_RATE, 0.0), CropPlan(*pixels, 0, 0, *pixels)
    samples = [Sample("clips", f"{number}.mp4", info, plan, crop, ("",), 1) for number in range(CLIPS)]
    return BatchStream(
        samples, lambda sample: latents, lambda caption: (text, mask), BatchRules(1), seed=0, caption_dropout=0.1
    )


# Encoding, attention, rate -------------------------------------------------------------------------


def encode(order: dict[str, Any]) -> dict[str, Any]:
    """The autoencoder of 0.9.5 over one clip; its weights may lie with channels last, and it may be compiled."""
    host = find_host()
    width, height, frames = order["width"], order["height"], order["num_frames"]
    with tempfile.TemporaryDirectory() as folder:
        if order.get("size") == "miniature":
            settings = ModelSection(pretrained_model_name_or_path=str(write_miniature(Path(folder) / "m", "0.9.5")))
            autoencoder = FAMILY.load_autoencoder(FAMILY.resolve(settings), BF16, host.device)
        else:
            settings = ModelSection(model_flavour="0.9.5")
            with host.device:
                model = AutoencoderKLLTXVideo(**AUTOENCODERS["C"]).to(BF16).eval()
                autoencoder = LTXAutoencoder(model, torch.zeros(128), torch.ones(128), 0.05, 0.025)
        if order.get("channels_last"):
            autoencoder.model.encoder.to(memory_format=torch.channels_last_3d)
        if order.get("compiled"):
            autoencoder._after_patches = torch.compile(autoencoder._after_patches)
        cost = cost_source("ltxvideo").find(settings)
        pixels = torch.randint(0, 256, (1, 3, frames, height, width), dtype=torch.uint8, device=host.device)
        first = _timed(lambda: autoencoder.encode(pixels), host.device)
        count, seconds = _measured(
            lambda: autoencoder.encode(pixels), host.device, order.get("seconds", MEASURED_SECONDS)
        )
    flops = cost.encode_clip(width, height, frames, tiling=False).total_flops
    return {
        **_rates(order, flops, seconds), "first_seconds": first, "count": count, "pace": f"{1 / seconds:.2f} clips"
    }  # fmt: skip


def attention(order: dict[str, Any]) -> dict[str, Any]:
    """Every kernel that is here, forward and backward."""
    host, tokens = find_host(), order["tokens"]
    told = []
    for name, row in ATTENTION._rows.items():
        if not row.is_installed or not row.trains or row.help.startswith("Another") or name == "native-math":
            continue
        parts = [
            torch.randn(1, tokens, order["heads"], order["head_dim"], device=host.device, dtype=BF16) for _ in "qkv"
        ]
        query, key, value = (part.requires_grad_() for part in parts)

        def once(row: Any = row, query: Tensor = query, key: Tensor = key, value: Tensor = value) -> None:
            attend(query, key, value, None, row).sum().backward()

        try:
            once()
            _, seconds = _measured(once, host.device, order.get("seconds", 1.0))
        except (RuntimeError, ValueError) as error:
            told.append(f"{name}: {str(error).splitlines()[0][:60]}")
            continue
        flops = 3.5 * 4.0 * order["heads"] * order["head_dim"] * tokens**2
        told.append(f"{name} {1e3 * seconds:.2f} ms ({flops / seconds / 1e12:.1f} TFLOP/s)")
    return {"text": "; ".join(told), "device": host.device_name}


def linears(order: dict[str, Any]) -> dict[str, Any]:
    """Layers that multiply in 8 bits, and those that only store in them, beside bfloat16's."""
    host, told = find_host(), []
    for tokens in order["tokens"]:
        found = measure_formats(tokens, order["width"], host.device, time.perf_counter, repeats=10)
        shares = (f"{name} {seconds / found['bf16']:.2f}" for name, seconds in found.items() if name != "bf16")
        told.append(f"{tokens:,} tokens: bf16 {1e3 * found['bf16']:.3f} ms, {', '.join(shares)}")
    return {"text": "; ".join(told), "device": host.device_name}


def rate(order: dict[str, Any]) -> dict[str, Any]:
    """Products of large matrices per second."""
    host = find_host()
    found = measure_matrix_rate(host.device, BF16, order.get("seconds", 2.0))
    return {
        "matrix_flops": found,
        "useful_flops": found,
        "share": 1.0,
        "device": f"{host.device_name}, torch {torch.__version__}",
    }


# Clocks ------------------------------------------------------------------------------------------


def _timed(work: Callable[[], Any], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    _settle(device)
    return time.perf_counter() - started


def _measured(work: Callable[[], Any], device: torch.device, seconds: float) -> tuple[int, float]:
    """How often it was done in about that time (at least twice), and the mean time of one."""
    _settle(device)
    started, count = time.perf_counter(), 0
    while count < 2 or time.perf_counter() - started < seconds:
        work()
        count += 1
    _settle(device)
    return count, (time.perf_counter() - started) / count


def _kernels(work: Callable[[], Any], device: torch.device, seconds: float) -> str:
    """How many kernels it starts, and for how much of `seconds` they keep the device busy; operations on a CPU."""
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as watched:
        work()
        _settle(device)
    rows = watched.key_averages()
    if device.type != "cuda":
        return f"{sum(row.count for row in rows if row.key.startswith('aten::')):,} operations and what they call"
    busy = sum(row.self_device_time_total for row in rows) / 1e6
    return f"{sum(row.count for row in rows):,} kernels and copies, busy {busy / seconds:.0%}"


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _rates(order: dict[str, Any], flops: float, seconds: float) -> dict[str, Any]:
    useful = flops / seconds
    share = {"share": useful / order["rate"]} if order.get("rate") else {}
    return {
        "seconds": seconds,
        "useful_flops": useful,
        **share,
        "peak_bytes": _peak(),
        "device": find_host().device_name,
    }


def _peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


WORK: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "rate": rate,
    "step": train,
    "encode": encode,
    "attention": attention,
    "linears": linears,
}

if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(WORK[given["what"]](given)))
