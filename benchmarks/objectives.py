"""What objectives beside flow matching cost a training step, in one run on the same model, batch and shapes.

    python benchmarks/objectives.py             # prints a table
    python benchmarks/objectives.py --write     # also benchmarks/objectives_<machine>_<yyyymm>.md

A rank-16 LoRA in bfloat16 on a frozen LTX-Video transformer with random weights: batch 2, 256x192 pixels and 49 frames
(336 tokens), 128 text tokens, one thread. "CREPA, cached" reads the teacher's features with the batch, "CREPA, live"
decodes the clip and asks the vision encoder at every step; the autoencoder is a miniature and the
encoder a DINOv2 as thin as the model. A roll-out is drawn for every sample, with offsets up to the one that is named.
Rounds of all alternate in one process; seconds are CPU seconds of all threads. Peak memory is that of one child process
each, and what it has beside the plain run's tells what must lie in memory.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch

sys.path.insert(0, str(Path(__file__).parent))

from step_overhead import (  # type: ignore[import-not-found]
    BATCH_SIZE,
    CLIPS,
    LATENT_SHAPE,
    TEXT_TOKENS,
    Size,
    choose_settings,
    describe_machine,
    draw_clips,
    plan_samples,
    write_checkpoint,
)

SIZES = {"tiny": Size(4, 4, 32, rounds=12, steps=2), "medium": Size(8, 12, 64, rounds=5, steps=1)}
FEATURES, PICTURE = 64, 224
CREPA: dict[str, Any] = {"crepa_enabled": True, "crepa_block_index": 1, "crepa_encoder_image_size": PICTURE}
ROLLOUT: dict[str, Any] = {"scheduled_sampling_probability": 1.0, "scheduled_sampling_sampler": "euler"}

# Name -> options of CREPA, of the roll-out, of the others; whether the teacher is asked at every step.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], bool]] = {
    "plain": ({}, {}, {}, False),
    "CREPA, cached": (CREPA, {}, {}, False),
    "CREPA, live": (CREPA, {}, {}, True),
    "CREPA, backbone": ({**CREPA, "crepa_feature_source": "backbone", "crepa_teacher_block_index": 3}, {}, {}, False),
    "CREPA, self-flow": ({**CREPA, "crepa_feature_source": "self_flow", "crepa_teacher_block_index": 3}, {}, {}, False),
    "temporal difference": ({}, {}, {"temporal_difference_weight": 0.1}, False),
    "roll-out up to 1": (
        {}, {**ROLLOUT, "scheduled_sampling_max_step_offset": 1, "scheduled_sampling_reflexflow": False}, {}, False),
    "roll-out up to 5": (
        {}, {**ROLLOUT, "scheduled_sampling_max_step_offset": 5, "scheduled_sampling_reflexflow": False}, {}, False),
    "roll-out up to 5, ReflexFlow": ({}, {**ROLLOUT, "scheduled_sampling_max_step_offset": 5}, {}, False),
}  # fmt: skip
Loop = Callable[[int], None]


def begin(kind: str, checkpoint: Path, encoder: Path) -> Loop:
    """The trainer's own loop with one kind of objective; returns "do n steps"."""
    from simpletuner.config.sections.flow import FlowSection
    from simpletuner.config.sections.guidance import AuxiliarySection, CrepaSection, RolloutSection
    from simpletuner.config.sections.model import ModelSection
    from simpletuner.data.batch_rules import BatchRules
    from simpletuner.data.batches import BatchStream
    from simpletuner.models.ltxvideo.family import FAMILY
    from simpletuner.objectives.auxiliary import Surroundings
    from simpletuner.objectives.combined import CombinedObjective, build_further
    from simpletuner.objectives.flow_matching import FlowMatching
    from simpletuner.training.build import build_trainable
    from simpletuner.training.companions import Companions
    from simpletuner.training.fit import fit
    from simpletuner.training.state import TrainState

    crepa, rollout, others, live = KINDS[kind]
    settings = choose_settings()
    source = FAMILY.resolve(ModelSection(pretrained_model_name_or_path=str(checkpoint)))
    latents, text = draw_clips()
    mask = torch.ones(TEXT_TOKENS, dtype=torch.bool)
    features = torch.randn(CLIPS, *LATENT_SHAPE[1:], FEATURES).bfloat16()
    cached = bool(crepa) and not live and "crepa_feature_source" not in crepa
    stream = BatchStream(
        plan_samples(),
        lambda sample: latents[int(sample.path.removesuffix(".mp4"))],
        lambda caption: (text[int(caption or 0)], mask),
        BatchRules(BATCH_SIZE),
        seed=0,
        caption_dropout=0.1,
        read_features=(lambda sample: features[int(sample.path.removesuffix(".mp4"))]) if cached else None,
    )
    trainable = build_trainable(FAMILY, source, settings, torch.device("cpu"))
    state = TrainState.begin(trainable, stream, settings, 10**9)
    flow = FlowMatching(FAMILY, source, FlowSection(), 0)
    further = build_further(
        Surroundings(
            FAMILY, source, trainable.transformer, CrepaSection(**crepa), RolloutSection(**rollout),
            AuxiliarySection(**others), 0, 10**9, torch.device("cpu"), FEATURES,
            teacher=begin_teacher(checkpoint, encoder) if live else None,
            other_levels=FlowMatching(FAMILY, source, FlowSection(), 1).draw_sigmas,
            measured=trainable.adapter.measured,
        )
    )  # fmt: skip
    modules = {name: one.companion for name, one in further.items() if one.companion is not None}
    state.companions = Companions(modules, 1e-4) if modules else None
    objective: Any = CombinedObjective(flow, list(further.values()), FAMILY.block_list) if further else flow
    events = fit(state, objective, stop=lambda: False)

    def run(steps: int) -> None:
        for _ in range(steps):
            next(events)

    return run


def begin_teacher(checkpoint: Path, encoder: Path) -> Any:
    """Autoencoder and vision encoder, as the trainer puts them together."""
    from simpletuner.config.sections.model import ModelSection
    from simpletuner.models.ltxvideo.family import FAMILY
    from simpletuner.models.vision_teacher import find_teacher, load_teacher
    from simpletuner.recipes.teaching import features_of

    cpu = torch.device("cpu")
    source = FAMILY.resolve(ModelSection(pretrained_model_name_or_path=str(checkpoint)))
    autoencoder = FAMILY.load_autoencoder(source, torch.float32, cpu)
    autoencoder.drop_encoder()
    teacher = load_teacher(find_teacher(str(encoder)), torch.float32, cpu, size=PICTURE)
    make = features_of(autoencoder, teacher, FAMILY.grid.temporal)
    return lambda latents: make(latents.float())


def write_encoder(folder: Path) -> Path:
    """A thin DINOv2 with random weights."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=FEATURES, num_hidden_layers=4, num_attention_heads=4, image_size=PICTURE, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)
    return folder


def time_steps(checkpoint: Path, encoder: Path, size: Size) -> dict[str, list[float]]:
    """CPU seconds per step of each kind, one value per round; the first round warms up and is dropped."""
    loops = {kind: begin(kind, checkpoint, encoder) for kind in KINDS}
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    gc.collect()
    for number in range(size.rounds + 1):
        for kind in KINDS if number % 2 else reversed(KINDS):
            started = time.process_time()
            loops[kind](size.steps)
            if number > 0:
                seconds[kind].append((time.process_time() - started) / size.steps)
    return seconds


def measure_memory(kind: str, checkpoint: Path, encoder: Path) -> float:
    """Peak resident megabytes of a fresh process that does a few steps."""
    command = [sys.executable, __file__, "--child", kind, "--checkpoint", str(checkpoint), "--encoder", str(encoder)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ}).stdout
    return float(json.loads(output.splitlines()[-1])["peak_mb"])


def run_child(kind: str, checkpoint: Path, encoder: Path) -> None:
    begin(kind, checkpoint, encoder)(3)
    unit = 1 if sys.platform == "darwin" else 1024
    print(json.dumps({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}))


def measure(name: str) -> str:
    """One table, as Markdown."""
    size = SIZES[name]
    rows = [
        f"| {name}: {size.layers} layers, {size.heads} x {size.head_dim} | CPU s per step "
        "| times plain (median of rounds) | peak MB | beside plain |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, encoder = write_checkpoint(Path(folder) / "model", size), write_encoder(Path(folder) / "encoder")
        memory = {kind: measure_memory(kind, checkpoint, encoder) for kind in KINDS}
        seconds = time_steps(checkpoint, encoder, size)
    for kind in KINDS:
        ratio = statistics.median(o / p for o, p in zip(seconds[kind], seconds["plain"], strict=True))
        rows.append(
            f"| {kind} | {statistics.median(seconds[kind]):.4f} | {ratio:.2f} | {memory[kind]:.0f} "
            f"| {memory[kind] - memory['plain']:+.0f} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Measure and print; see the top of the file."""
    parser = argparse.ArgumentParser(description="Cost of further objectives beside the plain step.")
    parser.add_argument("--size", choices=SIZES, action="append", help="only this model (default: all)")
    parser.add_argument("--write", action="store_true", help="also write the result file")
    parser.add_argument("--machine", default=platform.machine(), help="machine part of the result file's name")
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--encoder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.child:
        run_child(arguments.child, arguments.checkpoint, arguments.encoder)
        return
    tables = "\n\n".join(measure(name) for name in arguments.size or list(SIZES))
    print(f"{describe_machine()}\n\n{tables}")
    if arguments.write:
        month = f"{datetime.date.today():%Y%m}"
        path = Path(__file__).with_name(f"objectives_{arguments.machine}_{month}.md")
        path.write_text(f"# Objectives\n\n{__doc__}\n{describe_machine()}\n\n{tables}\n", encoding="utf-8")
        print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
