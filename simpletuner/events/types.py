"""The closed set of things that can happen in a run, each a frozen record of plain values.

Every sink serialises these same records; a new kind of event is one more dataclass here, and
`records.py` reads it back from the journal by itself. Events carry numbers, texts and paths only, so
that a sink needs to know nothing of the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal


@dataclass(frozen=True)
class Event:
    """Base of all events; the class name in snake case is the event's kind in the journal.

    Attributes:
        is_passing: Whether an event of this kind is of no use once a newer one of its kind is there (a preview):
            receivers that lag behind may leave it out. All others are delivered, or counted as lost.
    """

    is_passing: ClassVar[bool] = False


@dataclass(frozen=True)
class RunStarted(Event):
    run_name: str
    output_dir: str
    resumed_from: str = ""  # checkpoint folder, empty for a fresh start


@dataclass(frozen=True)
class StoryTold(Event):
    """A paragraph of the story before step 1: a heading and its lines (label, value)."""

    heading: str
    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class TrainingBegan(Event):
    """The loop is about to start: how long it is, and where it goes on.

    `batches_per_epoch` counts micro-batches; `samples_per_step` is batch size times accumulation.
    """

    step: int  # where the loop goes on, 0 for a fresh run
    total_steps: int
    epoch: int  # from 1
    total_epochs: int
    batches_per_epoch: int
    batch_size: int
    samples_per_step: int


@dataclass(frozen=True)
class MemoryMeasured(Event):
    """The most memory of a phase, measured before step 1 on the largest that will come, beside its forecast.

    Both count tensors alone, without what the driver and the allocator take for themselves; 0 where not known.
    """

    phase: str  # as the forecast calls it: "training", "denoising videos", "decoding videos"
    what: str  # such as "2 clips of 768x512@49"
    measured_bytes: int
    forecast_bytes: int
    limit_bytes: int  # of the device


@dataclass(frozen=True)
class StageStarted(Event):
    """A piece of work with a known amount begins; shown as a progress bar."""

    stage: str  # "probe", "latents", "prompts", "train", "validation"
    label: str
    total: int
    unit: str = "items"
    done: int = 0  # where a resumed stage begins


@dataclass(frozen=True)
class StageAdvanced(Event):
    stage: str
    done: int
    detail: str = ""


@dataclass(frozen=True)
class StageFinished(Event):
    stage: str
    done: int
    seconds: float
    summary: str = ""


@dataclass(frozen=True)
class PhaseBegan(Event):
    """A piece of work of unknown length begins, one of `PHASES` in `phases.py`; nobody is shown a bar."""

    phase: str


@dataclass(frozen=True)
class PhaseEnded(Event):
    phase: str
    seconds: float
    outcome: Literal["completed", "failed"] = "completed"


@dataclass(frozen=True)
class HardwareFound(Event):
    """What the run computes with."""

    cpu: str
    cores: int  # that this process may use
    memory_bytes: int
    device: str
    device_bytes: int = 0  # 0 where the device has no memory of its own


@dataclass(frozen=True)
class HardwareSampled(Event):
    """How busy the machine is, looked at now and then beside training; not-a-number where it cannot be read."""

    cpu_percent: float  # of all cores, by every program
    own_cpu_percent: float  # of all cores, by this run
    memory_bytes: int  # of this run
    memory_percent: float  # of the machine's, by every program
    device_percent: float = math.nan  # share of the time in which the card computed
    device_memory_bytes: float = math.nan  # in use on the card, by every program
    device_watts: float = math.nan
    device_celsius: float = math.nan


@dataclass(frozen=True)
class Noticed(Event):
    """A message for the user that does not stop the run."""

    severity: Literal["note", "warning", "error"]
    text: str


@dataclass(frozen=True)
class StepFinished(Event):
    """One optimizer step is done."""

    step: int  # from 1
    epoch: int
    loss: float  # mean over the samples of the step
    learning_rate: float  # used in this step
    gradient_norm: float  # global L2 norm before clipping
    samples: int
    tokens: int  # latent tokens of all samples
    seconds: float
    memory_bytes: int = 0  # peak on the device, or resident set on the CPU
    terms: Mapping[str, float] = field(default_factory=dict)  # named loss terms, per-sigma-band losses
    still_steps: int = 0  # steps up to this one over which no trained weight has changed; looked at now and then


@dataclass(frozen=True)
class PaceMeasured(Event):
    """How fast training is and what is still to come, told now and then.

    The rates are those of the steps alone, over this start of the run without its first steps.
    """

    is_passing: ClassVar[bool] = True

    step: int
    steps_per_second: float
    clips_per_second: float
    tokens_per_second: float  # latent tokens
    seconds_left: float  # to the end of the run, the sum of `left`
    left: Mapping[str, float]  # "training", "validation", "evaluation", "checkpoint" -> seconds for which it goes on
    forecast: tuple[str, ...] = ()  # those of `left` that have not happened yet, so that their length is a forecast


@dataclass(frozen=True)
class StepSkipped(Event):
    """An optimizer step whose loss or gradients were no finite numbers; weights and optimizer are as before it."""

    step: int  # from 1; a skipped step counts like any other
    epoch: int
    reason: str
    samples: tuple[str, ...]  # those to blame, or all of the step


@dataclass(frozen=True)
class RolledBack(Event):
    """The run has gone back to a checkpoint; it goes on with the clips that would have come next."""

    step: int  # where it was
    to_step: int
    path: str  # of the checkpoint
    reason: str


@dataclass(frozen=True)
class CheckpointSaved(Event):
    step: int
    path: str
    seconds: float  # from the snapshot to the last byte on the disk
    size_bytes: int
    stalled_seconds: float = 0.0  # for which training waited
    is_rolling: bool = False  # a safety checkpoint, which the next one replaces


@dataclass(frozen=True)
class LossEvaluated(Event):
    """The loss on clips that are never trained, at fixed noise and noise levels; see validation/stable_loss.py."""

    step: int  # optimizer steps done
    weights: Literal["adapter", "ema"]
    loss: float  # mean of the series
    losses: Mapping[str, float]  # series -> mean over its clips and noise levels
    sigmas: tuple[float, ...]  # the noise levels
    by_level: Mapping[str, tuple[float, ...]]  # series -> mean over its clips at each noise level
    clips: int
    seconds: float
    yardstick: str  # fingerprint of what is measured; only equal ones can be compared
    decides: bool = True  # whether these weights decide which step is best
    train_loss: float | None = None  # mean of the steps since the measurement before
    is_best: bool = False
    best_step: int = 0
    best_loss: float = 0.0


@dataclass(frozen=True)
class VideoGenerated(Event):
    step: int
    weights: Literal["base", "adapter", "ema"]
    nickname: str
    prompt: str
    width: int
    height: int
    num_frames: int
    frame_rate: float
    seed: int
    path: str
    seconds: float
    number: int = 1  # of several videos of one prompt and size, from 1
    measures: Mapping[str, float] = field(default_factory=dict)  # see maths/video_measures.py; "likeness" to the base


@dataclass(frozen=True)
class PreviewGenerated(Event):
    """A small animated picture of a video in the making: what the model expects it to become."""

    is_passing: ClassVar[bool] = True

    step: int  # optimizer steps done
    weights: Literal["base", "adapter", "ema"]
    nickname: str
    prompt: str
    width: int  # pixels of the video, not of the preview
    height: int
    inference_step: int  # denoising steps done, from 1
    inference_steps: int
    sigma: float  # noise level that is left
    path: str  # a GIF that repeats for ever
    number: int = 1  # as in VideoGenerated


@dataclass(frozen=True)
class UploadStarted(Event):
    what: str  # such as "checkpoint-500"
    target: str  # who receives it, such as "the Hub"


@dataclass(frozen=True)
class Uploaded(Event):
    """Files are where others can get them; told only after the other side has confirmed it."""

    what: str  # such as "checkpoint-500"
    address: str
    seconds: float
    target: str = ""  # as in `UploadStarted`
    step: int = 0


@dataclass(frozen=True)
class RunFinished(Event):
    step: int
    outcome: Literal["finished", "stopped", "failed"]
    detail: str = ""
