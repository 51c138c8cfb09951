"""Validation videos that begin with first frames of clips: the prompts of `validation_using_datasets`."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from PIL import Image

from simpletuner.config.prompts import name_prompts
from simpletuner.config.run_config import RunConfig, ValidationPrompt
from simpletuner.config.sections.validation import CLIPS_SHOWN
from simpletuner.core.files import write_atomic
from simpletuner.data.decode import decode_frames
from simpletuner.data.sample import Sample, Unfit
from simpletuner.events.types import Event, Noticed
from simpletuner.recipes.plan import RunPlan

INPUT_FOLDER = "validation_inputs"  # inside the run folder


def with_first_frames(config: RunConfig, plan: RunPlan, emit: Callable[[Event], None]) -> RunConfig:
    """The configuration with a prompt for each clip whose first frame is shown; the same where none is wanted.

    Raises:
        UserError: If the pictures cannot be written (exit code 6).
    """
    if not config.validation.validation_using_datasets or not config.validation.makes_videos:
        return config
    folder = Path(config.checkpoint.output_dir) / INPUT_FOLDER
    prompts = []
    for sample in choose_clips(plan, config.evaluation.eval_dataset_id):
        try:
            frame = decode_frames(plan.storages[sample.dataset], sample, [0])[0]
        except Unfit as unfit:
            emit(Noticed("warning", f"no validation video begins with {sample.name}: {unfit.reason}"))
            continue
        stem = PurePosixPath(sample.path).stem
        prompts.append((ValidationPrompt(f"from_{stem}", sample.captions[0]), frame))
    named = name_prompts(None, [*config.prompts, *(prompt for prompt, _ in prompts)])
    added = []
    for prompt, (_, frame) in zip(named[len(config.prompts) :], prompts, strict=True):
        path = folder / f"{prompt.nickname}.png"
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, format="PNG")
        if not path.is_file() or path.read_bytes() != buffer.getvalue():
            write_atomic(path, buffer.getvalue())
        added.append(replace(prompt, image=str(path)))
    return replace(config, prompts=(*config.prompts, *added))


def choose_clips(plan: RunPlan, evaluation_set: str | None) -> list[Sample]:
    """Up to four clips spread over the evaluation sets, else over what trains image-to-video, else over all clips."""
    sets = plan.evaluation.items()
    held_out = [one for ident, members in sets if evaluation_set in (None, ident) for one in members]
    pool: Sequence[Sample] = (
        [sample for sample in held_out if sample.captions and sample.captions[0].strip()]
        or [sample for sample in plan.samples if sample.is_i2v]
        or plan.samples
    )
    files = list({(sample.dataset, sample.path): sample for sample in reversed(pool)}.values())[::-1]
    apart = max(1, len(files) // CLIPS_SHOWN)
    return files[::apart][:CLIPS_SHOWN]
