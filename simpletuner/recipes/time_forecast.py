"""How long a run takes on one card: operations and bytes from the model's arithmetic, rates from the card's row.

All times are estimates; the sums behind them are exact and tested. No torch.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from simpletuner.config.catalogs.cards import CardRow
from simpletuner.config.sections.memory import clips_per_pass
from simpletuner.events.wording import told_duration
from simpletuner.models.cost import Operations
from simpletuner.recipes.disk_plan import trained_values
from simpletuner.recipes.forecast_task import Task
from simpletuner.recipes.run_length import measures_first_frames, video_sizes

EAGER_TRAFFIC = 3.0  # eager PyTorch writes and reads each intermediate; the project's performance notes, section 3
READ_BYTES_PER_SECOND = 3e9  # weights from a fast disk
START_SECONDS = 8.0  # imports, configuration, first kernels
# Frames of 1920x1080 H.264 that one core decodes per second, resizing included.
DECODED_PIXELS_PER_SECOND = 200 * 1920 * 1080.0
OPTIMIZER_LAUNCHES = 60
# Shares of the bf16 rates that float32 products reach: without TF32 on CUDA, with half-width vectors on a CPU.
FLOAT32_RATE = {True: 0.5, False: 0.1}


@dataclass(frozen=True)
class Times:
    """Seconds on one card, nothing cached yet; a part that cannot be told is None.

    Attributes:
        start: Imports and loading.
        captions, clips: Encoding them.
        step: One optimizer step, on average.
        training: All steps.
        validation_each: One validation, all its videos.
        validation: All validations.
        evaluation: All measurements of the evaluation loss.
    """

    start: float
    captions: float | None
    clips: float | None
    step: float | None
    training: float | None
    validation_each: float
    validation: float
    evaluation: float = 0.0

    @property
    def total(self) -> float | None:
        """The whole run."""
        if self.training is None:
            return None
        return (
            self.start
            + (self.captions or 0.0)
            + (self.clips or 0.0)
            + self.training
            + self.validation
            + self.evaluation
        )

    @property
    def validation_share(self) -> float:
        """Validation in relation to training and validation together."""
        together = (self.training or 0.0) + self.validation
        return self.validation / together if self.training and together else 0.0


def forecast_times(task: Task, card: CardRow) -> Times:
    """The times of a run on `card`."""
    return _Clock(task).times(card)


class _Clock:
    """Puts operations, bytes and rates together for one run."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def times(self, card: CardRow) -> Times:
        step = self._step_seconds(card)
        steps = self._task.length.steps
        each = self._validation_seconds(card)
        weights = self._task.cost.parameters["transformer"] * self._task.trained.weight_bytes
        return Times(
            start=START_SECONDS + weights / READ_BYTES_PER_SECOND,
            captions=self._caption_seconds(card),
            clips=self._clip_seconds(card),
            step=step,
            training=step * steps if step is not None and steps else None,
            validation_each=each,
            validation=each * self._task.length.validations,
            evaluation=self._evaluation_seconds(card) * self._task.length.evaluations,
        )

    def _seconds(self, work: Operations, card: CardRow, value_bytes: int = 2) -> float:
        """Seconds of some work: a GPU waits for its host or the host for it; a CPU does one after the other."""
        cores = self._task.machine.cores if card.per_core else 1
        slower = FLOAT32_RATE[card.per_core] if value_bytes == 4 else 1.0
        device = (
            work.matrix_flops / (card.matrix_flops * cores * slower)
            + work.attention_flops / (card.attention_flops * cores * slower)
            + work.convolution_flops / (card.convolution_flops * cores * max(slower, 0.5))
            + EAGER_TRAFFIC * work.traffic_bytes / card.bandwidth_bytes
        )
        host = work.launches * card.launch_seconds
        return device + host if card.per_core else max(device, host)

    def _step_seconds(self, card: CardRow) -> float | None:
        """One optimizer step, averaged over the batches of an epoch."""
        task = self._task
        if task.data is None or not task.data.batches_per_epoch:
            return None
        epoch = 0.0
        for line in task.data.buckets:
            clip = task.cost.train_clip(line.tokens, task.text_tokens, task.trained)
            each = clips_per_pass(line.batch_size, line.tokens, task.config.memory.max_tokens_per_pass)
            passes = math.ceil(line.draws / line.batches / each)
            work = clip.times(line.draws / line.batches, launches=passes)
            again = task.cost.forward(line.tokens, task.text_tokens).times(line.draws / line.batches, launches=passes)
            work += again.times(task.config.rollout.extra_forwards + line.prior_draws / line.draws)
            seconds = self._seconds(work, card, task.trained.weight_bytes)
            # Streamed blocks come forward, and again going backward.
            epoch += line.batches * task.streaming.seconds(seconds, 2 * passes, card)
        batches = float(task.config.schedule.gradient_accumulation_steps)
        if task.data.steps_per_epoch:
            batches = task.data.batches_per_epoch / task.data.steps_per_epoch
        values = trained_values(task.cost, task.trained)
        bytes_moved = values * 2 * (2 * task.trained.parameter_bytes + task.trained.state_bytes)
        update = bytes_moved / card.bandwidth_bytes + OPTIMIZER_LAUNCHES * card.launch_seconds
        return epoch / task.data.batches_per_epoch * batches + update

    def _caption_seconds(self, card: CardRow) -> float | None:
        if self._task.data is None or self._task.data.is_assumed:
            return None
        count = len(self._task.data.captions) + 2 + len(self._task.config.prompts)
        batch = min(self._task.config.caching.text_encoder_batch_size, count)
        work = self._task.cost.encode_text(self._task.text_tokens).times(count, launches=math.ceil(count / batch))
        load = self._task.cost.parameters["text"] * self._task.text_bytes / READ_BYTES_PER_SECOND
        return load + self._seconds(work, card, self._task.trained.weight_bytes)

    def _clip_seconds(self, card: CardRow) -> float | None:
        """Encoding overlaps with decoding: the slower of the two counts."""
        if self._task.data is None or self._task.data.is_assumed:
            return None
        encoding = decoding = 0.0
        threads = min(self._task.config.caching.max_workers, self._task.machine.cores)
        for bucket, count in self._task.data.encoded_buckets.items():
            work = self._task.cost.encode_clip(bucket.width, bucket.height, bucket.num_frames, tiling=self._task.tiling)
            encoding += count * self._seconds(work, card, self._task.vae_bytes)
        for sample in (*self._task.data.samples, *self._task.data.evaluation):
            pixels = sample.info.width * sample.info.height * sample.frames.num_frames
            decoding += pixels / DECODED_PIXELS_PER_SECOND / threads
        return self._task.autoencoder_bytes / READ_BYTES_PER_SECOND + max(encoding, decoding)

    def _validation_seconds(self, card: CardRow) -> float:
        """All videos of one validation."""
        settings = self._task.config.validation
        if not self._task.length.videos_each:
            return 0.0
        halves = 2 if settings.validation_guidance > 1 else 1
        seconds = self._task.autoencoder_bytes / READ_BYTES_PER_SECOND
        for width, height in video_sizes(self._task.config):
            call = self._task.cost.forward(self._task.video_tokens(width, height), self._task.text_tokens)
            steps = settings.validation_num_inference_steps
            sampling = self._seconds(call.times(halves * steps, launches=steps), card, self._task.trained.weight_bytes)
            seconds += len(self._task.config.prompts) * (
                self._task.streaming.seconds(sampling, steps, card)
                + self._seconds(
                    self._task.cost.decode_clip(width, height, settings.num_frames, tiling=self._task.tiling), card,
                    self._task.vae_bytes,
                )
            )  # fmt: skip
        return seconds

    def _evaluation_seconds(self, card: CardRow) -> float:
        """One measurement of the evaluation loss: a forward pass per clip and noise level, twice for image-to-video."""
        task = self._task
        if task.data is None:
            return 0.0
        levels, batch = task.config.evaluation.eval_timesteps, task.config.schedule.train_batch_size
        calls = math.ceil(levels / batch)
        seconds = 0.0
        for ident, count in task.length.clips_each.items():
            found = [sample.bucket for sample in task.data.evaluation if sample.dataset == ident]
            for bucket, there in Counter(found).items():
                pass_ = task.cost.forward(task.tokens_of(bucket), task.text_tokens).times(levels, launches=calls)
                clip = task.streaming.seconds(self._seconds(pass_, card, task.trained.weight_bytes), calls, card)
                # Which clips are chosen depends on their names; the sizes of the whole set stand for theirs.
                ways = 2 if bucket.num_frames > 1 and measures_first_frames(task.config) else 1
                seconds += clip * ways * count * there / len(found)
        return seconds * self._weights_measured

    @property
    def _weights_measured(self) -> int:
        average = self._task.config.average
        return 2 if average.use_ema and average.ema_validation == "comparison" else 1


def told_seconds(seconds: float | None) -> str:
    """A duration for people; a dash where it cannot be told."""
    return "–" if seconds is None else told_duration(seconds)
