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

import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch

sys.path.insert(0, str(Path(__file__).parent))

from step_overhead import (  # type: ignore[import-not-found]
    CLIPS,
    LATENT_SHAPE,
    TOTAL_STEPS,
    Loop,
    Size,
    build_run,
    measure_memory,
    parse_words,
    report_peak,
    steps_of,
    tell,
    time_steps,
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


def begin(kind: str, checkpoint: Path, encoder: Path) -> Loop:
    """The trainer's own loop with one kind of objective; returns "do n steps"."""
    from simpletuner.config.sections.flow import FlowSection
    from simpletuner.config.sections.guidance import AuxiliarySection, CrepaSection, RolloutSection
    from simpletuner.models.ltxvideo.family import FAMILY
    from simpletuner.objectives.auxiliary import Surroundings
    from simpletuner.objectives.combined import CombinedObjective, build_further
    from simpletuner.objectives.flow_matching import FlowMatching
    from simpletuner.training.companions import Companions

    crepa, rollout, others, live = KINDS[kind]
    features = torch.randn(CLIPS, *LATENT_SHAPE[1:], FEATURES).bfloat16()
    cached = bool(crepa) and not live and "crepa_feature_source" not in crepa
    state, flow, source = build_run(
        checkpoint, (lambda sample: features[int(sample.path.removesuffix(".mp4"))]) if cached else None
    )
    trainable = state.trainable
    further = build_further(
        Surroundings(
            FAMILY, source, trainable.transformer, CrepaSection(**crepa), RolloutSection(**rollout),
            AuxiliarySection(**others), 0, TOTAL_STEPS, torch.device("cpu"), FEATURES,
            teacher=begin_teacher(source, encoder) if live else None,
            other_levels=FlowMatching(FAMILY, source, FlowSection(), 1).draw_sigmas,
            measured=trainable.adapter.measured,
        )
    )  # fmt: skip
    modules = {name: one.companion for name, one in further.items() if one.companion is not None}
    state.companions = Companions(modules, 1e-4) if modules else None
    return steps_of(state, CombinedObjective(flow, list(further.values()), FAMILY.block_list) if further else flow)


def begin_teacher(source: Any, encoder: Path) -> Any:
    """Autoencoder and vision encoder, as the trainer puts them together."""
    from simpletuner.models.ltxvideo.family import FAMILY
    from simpletuner.models.vision_teacher import find_teacher, load_teacher
    from simpletuner.recipes.teaching import features_of

    cpu = torch.device("cpu")
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
        words = ("--checkpoint", str(checkpoint), "--encoder", str(encoder), "--child")
        memory = {kind: measure_memory(__file__, *words, kind) for kind in KINDS}
        seconds = time_steps({kind: begin(kind, checkpoint, encoder) for kind in KINDS}, size)
    for kind in KINDS:
        ratio = statistics.median(o / p for o, p in zip(seconds[kind], seconds["plain"], strict=True))
        rows.append(
            f"| {kind} | {statistics.median(seconds[kind]):.4f} | {ratio:.2f} | {memory[kind]:.0f} "
            f"| {memory[kind] - memory['plain']:+.0f} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Measure and print; see the top of the file."""
    what = "Cost of further objectives beside the plain step."
    arguments = parse_words(what, SIZES, KINDS, "checkpoint", "encoder")
    torch.set_num_threads(1)
    if arguments.child:
        report_peak(begin(arguments.child, arguments.checkpoint, arguments.encoder))
        return
    tables = "\n\n".join(measure(name) for name in arguments.size or list(SIZES))
    tell(tables, __file__, "Objectives", __doc__, arguments)


if __name__ == "__main__":
    main()
