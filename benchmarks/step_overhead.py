"""What our training step costs beside a bare PyTorch loop on the same model, batch and shapes.

    python benchmarks/step_overhead.py             # prints a table
    python benchmarks/step_overhead.py --write     # also benchmarks/step_overhead_<machine>_<yyyymm>.md

Both sides train rank-16 LoRA matrices in bfloat16 on a frozen bfloat16 LTX-Video transformer with
random weights: batch 2, 256x192 pixels and 49 frames (336 tokens), 128 text tokens, one thread, no
gradient checkpointing, gradients clipped by norm. "ours" is the whole of it: `BatchStream` with its
loader thread, `FlowMatching`, `fit`, `adamw_bf16`. "bare" is what one would type in ten minutes:
tensors in memory, forward, backward, clip, `torch.optim.AdamW`. "compiled" is ours with
`dynamo_backend` inductor; compiling belongs to its first round, which is left out of every row, and the
compiler is in its memory. Rounds of both alternate in one
process; CPU seconds count all threads. Peak memory is that of one child process each.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch

BATCH_SIZE, CLIPS = 2, 16
LATENT_SHAPE = (128, 7, 6, 8)  # 49 frames of 256x192 pixels: 336 tokens
TEXT_TOKENS, TEXT_WIDTH, LORA_RANK, FRAME_RATE = 128, 64, 16, 25.0
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
LEARNING_RATE, MAX_GRAD_NORM = 1e-4, 1.0
TOTAL_STEPS = 10**9  # never reached


@dataclass(frozen=True)
class Size:
    """A model and how long to look at it.

    Attributes:
        layers, heads, head_dim: Shape of the transformer.
        rounds: Alternations of both loops.
        ours: Which of the trainer's loops stands beside the bare one.
        steps: Steps of one loop in one round.
    """

    layers: int
    heads: int
    head_dim: int
    rounds: int
    steps: int
    ours: str = "ours"


SIZES = {
    "tiny": Size(4, 4, 32, rounds=30, steps=3),
    "medium": Size(8, 12, 64, rounds=9, steps=1),
    "medium compiled": Size(8, 12, 64, rounds=9, steps=1, ours="compiled"),
}
Loop = Callable[[int], None]


def write_checkpoint(folder: Path, size: Size) -> Path:
    """A checkpoint of that size with random weights."""
    from simpletuner.models.ltxvideo.miniature import write_miniature

    return write_miniature(
        folder, "0.9.5", layers=size.layers, heads=size.heads, head_dim=size.head_dim, caption_channels=TEXT_WIDTH
    )


def draw_clips() -> tuple[torch.Tensor, torch.Tensor]:
    """Latents [CLIPS, C, F, H, W] and text features [CLIPS, L, D], bfloat16 as caches hold them."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(CLIPS, *LATENT_SHAPE, generator=generator)
    text = torch.randn(CLIPS, TEXT_TOKENS, TEXT_WIDTH, generator=generator)
    return latents.bfloat16(), text.bfloat16()


# Bare ------------------------------------------------------------------------------------------


def begin_bare(checkpoint: Path) -> Loop:
    """A plain loop with nothing but PyTorch, Diffusers and PEFT; returns "do n steps"."""
    from diffusers import LTXVideoTransformer3DModel
    from peft import LoraConfig

    model = LTXVideoTransformer3DModel.from_pretrained(checkpoint / "transformer", torch_dtype=torch.bfloat16)
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=ATTENTION))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.bfloat16()
    model.train()
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)
    latents, text = draw_clips()
    tokens = latents.flatten(2).transpose(1, 2).contiguous()
    mask = torch.ones(BATCH_SIZE, TEXT_TOKENS, dtype=torch.bool)
    position = 0

    def run(steps: int) -> None:
        nonlocal position
        for _ in range(steps):
            chosen = slice(position, position + BATCH_SIZE)
            position = (position + BATCH_SIZE) % CLIPS
            clean = tokens[chosen].float()
            noise = torch.randn_like(clean)
            sigmas = torch.sigmoid(torch.randn(BATCH_SIZE))
            share = sigmas.view(-1, 1, 1)
            prediction = model(
                hidden_states=((1 - share) * clean + share * noise).bfloat16(),
                encoder_hidden_states=text[chosen],
                timestep=1000 * sigmas,
                encoder_attention_mask=mask,
                num_frames=LATENT_SHAPE[1],
                height=LATENT_SHAPE[2],
                width=LATENT_SHAPE[3],
                rope_interpolation_scale=(8 / FRAME_RATE, 32, 32),
                return_dict=False,
            )[0]
            loss = (prediction.float() - (noise - clean)).square().mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
            optimizer.step()
            optimizer.zero_grad()

    return run


# Ours ------------------------------------------------------------------------------------------


def begin_ours(checkpoint: Path) -> Loop:
    """The trainer's own loop over the trainer's own parts; returns "do n steps"."""
    state, flow, _ = build_run(checkpoint)
    return steps_of(state, flow)


def begin_compiled(checkpoint: Path) -> Loop:
    """The trainer's own loop with `dynamo_backend` inductor."""
    state, flow, _ = build_run(checkpoint, backend="inductor")
    return steps_of(state, flow)


def build_run(
    checkpoint: Path, read_features: Callable[[Any], torch.Tensor] | None = None, backend: str = "no"
) -> tuple[Any, Any, Any]:
    """State, plain objective and checkpoint of a run of the trainer's; `read_features` as `BatchStream` takes it."""
    from simpletuner.config.sections.flow import FlowSection
    from simpletuner.config.sections.model import ModelSection
    from simpletuner.data.batch_rules import BatchRules
    from simpletuner.data.batches import BatchStream
    from simpletuner.models.ltxvideo.family import FAMILY
    from simpletuner.objectives.flow_matching import FlowMatching
    from simpletuner.training.build import build_trainable
    from simpletuner.training.state import TrainState

    config = choose_settings(backend)
    source = FAMILY.resolve(ModelSection(pretrained_model_name_or_path=str(checkpoint)))
    latents, text = draw_clips()
    mask = torch.ones(TEXT_TOKENS, dtype=torch.bool)
    stream = BatchStream(
        plan_samples(),
        lambda sample: latents[int(sample.path.removesuffix(".mp4"))],
        lambda caption: (text[int(caption or 0)], mask),
        BatchRules(BATCH_SIZE),
        seed=0,
        caption_dropout=0.1,
        read_features=read_features,
    )
    trainable = build_trainable(FAMILY, source, config, torch.device("cpu"))
    state = TrainState.begin(trainable, stream, config, TOTAL_STEPS)
    return state, FlowMatching(FAMILY, source, FlowSection(), 0), source


def steps_of(state: Any, objective: Any) -> Loop:
    """The trainer's loop; returns "do n steps"."""
    from simpletuner.training.fit import fit

    events: Iterator[Any] = fit(state, objective, stop=lambda: False)

    def run(steps: int) -> None:
        for _ in range(steps):
            next(events)

    return run


def choose_settings(backend: str = "no") -> Any:
    """The sections the trainer needs."""
    from simpletuner.config.sections.adapter import AdapterSection
    from simpletuner.config.sections.average import AverageSection
    from simpletuner.config.sections.memory import MemorySection
    from simpletuner.config.sections.model import ModelSection
    from simpletuner.config.sections.optimizer import OptimizerSection
    from simpletuner.config.sections.precision import PrecisionSection
    from simpletuner.config.sections.schedule import ScheduleSection

    return SimpleNamespace(
        model=ModelSection(dynamo_backend=backend),
        adapter=AdapterSection(lora_rank=LORA_RANK),
        average=AverageSection(),
        lycoris=None,
        precision=PrecisionSection(mixed_precision="bf16"),
        memory=MemorySection(gradient_checkpointing=False),
        optimizer=OptimizerSection(optimizer="adamw_bf16", max_grad_norm=MAX_GRAD_NORM, grad_clip_method="norm"),
        schedule=ScheduleSection(learning_rate=LEARNING_RATE, lr_scheduler="constant"),
    )


def plan_samples() -> list[Any]:
    """The clips as the data room would have found them."""
    from simpletuner.data.sample import CropPlan, FramePlan, MediaInfo, Sample

    info = MediaInfo("video", 256, 192, FRAME_RATE, 49, 49 / FRAME_RATE, 0, 1.0, "h264", 1, "1")
    frames, crop = FramePlan(49, FRAME_RATE, 0.0), CropPlan(256, 192, 0, 0, 256, 192)
    return [Sample("clips", f"{number}.mp4", info, frames, crop, (str(number),), 1) for number in range(CLIPS)]


# Measuring -------------------------------------------------------------------------------------

SIDES: dict[str, Callable[[Path], Loop]] = {"bare": begin_bare, "ours": begin_ours, "compiled": begin_compiled}


def time_steps(loops: Mapping[str, Loop], size: Size) -> dict[str, list[float]]:
    """CPU seconds per step of each loop, one value per round; the first round warms up and is dropped."""
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    gc.collect()
    for number in range(size.rounds + 1):
        for name in reversed(loops) if number % 2 else loops:
            started = time.process_time()
            loops[name](size.steps)
            if number > 0:
                seconds[name].append((time.process_time() - started) / size.steps)
    return seconds


def measure_memory(script: str, *words: str) -> float:
    """Peak resident megabytes of a fresh process, whose last act is `report_peak`."""
    command = [sys.executable, script, *words]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ}).stdout
    return float(json.loads(output.splitlines()[-1])["peak_mb"])


def report_peak(loop: Loop) -> None:
    """What a child process does: three steps, then print its peak."""
    loop(3)
    unit = 1 if sys.platform == "darwin" else 1024  # the system counts bytes there, kilobytes elsewhere
    print(json.dumps({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}))


def describe_machine() -> str:
    """Processor and versions, one line."""
    import diffusers
    import peft

    from simpletuner.runtime.hardware import cpu_name

    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}, peft {peft.__version__}"
    kernels = torch.backends.cpu.get_cpu_capability()
    return f"{cpu_name()}, 1 thread, {kernels}, Python {platform.python_version()}, {versions}"


def measure(names: list[str]) -> str:
    """The table, as Markdown."""
    rows = [
        "| model | parameters | bare, CPU s per step | ours, CPU s per step | ratio (median of rounds) | bare, peak MB "
        "| ours, peak MB | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        size = SIZES[name]
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = write_checkpoint(Path(folder) / name, size)
            count = count_parameters(checkpoint)
            words = ("--checkpoint", str(checkpoint), "--child")
            sides = ("bare", size.ours)
            memory = {side: measure_memory(__file__, *words, side) for side in sides}
            seconds = time_steps({side: SIDES[side](checkpoint) for side in sides}, size)
        ratio = statistics.median(o / b for o, b in zip(seconds[size.ours], seconds["bare"], strict=True))
        bare, ours = (statistics.median(seconds[side]) for side in sides)
        rows.append(
            f"| {name}: {size.layers} layers, {size.heads} x {size.head_dim} | {count / 1e6:.1f} M | {bare:.4f} "
            f"| {ours:.4f} | {ratio:.3f} | {memory['bare']:.0f} | {memory[size.ours]:.0f} "
            f"| {memory[size.ours] / memory['bare']:.2f} |"
        )
    return "\n".join(rows)


def count_parameters(checkpoint: Path) -> int:
    """Values of the base transformer."""
    from safetensors import safe_open

    total = 0
    for path in (checkpoint / "transformer").glob("*.safetensors"):
        with safe_open(path, framework="pt") as handle:
            total += sum(torch.Size(handle.get_slice(key).get_shape()).numel() for key in handle.keys())  # noqa: SIM118
    return total


def parse_words(what: str, sizes: Iterable[str], kinds: Iterable[str], *folders: str) -> argparse.Namespace:
    """The command line of a benchmark of steps; `kinds` and `folders` are for its child processes."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--size", choices=list(sizes), action="append", help="only this model (default: all)")
    parser.add_argument("--write", action="store_true", help="also write the result file")
    parser.add_argument("--machine", default=platform.machine(), help="machine part of the result file's name")
    parser.add_argument("--child", choices=list(kinds), help=argparse.SUPPRESS)
    for folder in folders:
        parser.add_argument(f"--{folder}", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def tell(table: str, script: str, title: str, doc: str | None, arguments: argparse.Namespace) -> None:
    """Print a table, and write it beside its script where that is asked for."""
    print(f"{describe_machine()}\n\n{table}")
    if arguments.write:
        month = f"{datetime.date.today():%Y%m}"
        path = Path(script).with_name(f"{Path(script).stem}_{arguments.machine}_{month}.md")
        path.write_text(f"# {title}\n\n{doc}\n\n{describe_machine()}\n\n{table}\n", encoding="utf-8")
        print(f"\nwritten to {path}")


def main() -> None:
    """Measure and print; see the top of the file."""
    arguments = parse_words("Cost of a training step beside a bare loop.", SIZES, SIDES, "checkpoint")
    torch.set_num_threads(1)
    if arguments.child:
        report_peak(SIDES[arguments.child](arguments.checkpoint))
        return
    tell(measure(arguments.size or list(SIZES)), __file__, "Step overhead", __doc__, arguments)


if __name__ == "__main__":
    main()
