"""What a run needs before anything is loaded: memory, time and disk, for one card or for several.

The operations and bytes come from the family's arithmetic, the rates from `config/catalogs/cards.py`;
here they are put together. All times are estimates; the sums behind them are exact and tested. No
torch, and nothing is downloaded or written. Next stops: `forecast_rules.py` judges the result, `cli/plan.py` shows it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from simpletuner.config.catalogs.cards import CARDS, USUAL, CardRow, find_card, match_card
from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.catalogs.optimizers import OPTIMIZERS
from simpletuner.config.catalogs.precisions import is_quantized
from simpletuner.config.run_config import RunConfig
from simpletuner.data.sample import BucketKey
from simpletuner.events.wording import told_duration
from simpletuner.models.adapter_cost import lycoris_layers
from simpletuner.models.cost import ModelCost, Operations, TrainedPart, cost_source
from simpletuner.recipes.disk_plan import AVERAGE_BYTES, DiskPlan, plan_disk, trained_values
from simpletuner.recipes.run_length import DataPlan, RunLength, assume_data, plan_data, plan_length, video_sizes
from simpletuner.recipes.streaming_plan import StreamingPlan, plan_streaming
from simpletuner.runtime.machine import Machine

if TYPE_CHECKING:
    from simpletuner.recipes.survey import Survey

Verdict = Literal["fits", "tight", "too large"]

EAGER_TRAFFIC = 3.0  # eager PyTorch writes and reads each intermediate; the project's performance notes, section 3
TIGHT_SHARE = 0.9  # of the card's memory; above it a forecast cannot promise that it fits
READ_BYTES_PER_SECOND = 3e9  # weights from a fast disk
START_SECONDS = 8.0  # imports, configuration, first kernels
# Frames of 1920x1080 H.264 that one core decodes per second, resizing included.
DECODED_PIXELS_PER_SECOND = 200 * 1920 * 1080.0
OPTIMIZER_LAUNCHES = 60
# Shares of the bf16 rates that float32 products reach: without TF32 on CUDA, with half-width vectors on a CPU.
FLOAT32_RATE = {True: 0.5, False: 0.1}


@dataclass(frozen=True)
class Memory:
    """Memory of one card.

    Attributes:
        phases: Phase -> part -> bytes; phases follow each other, so the largest counts.
        limit_bytes: What the card has.
    """

    phases: Mapping[str, Mapping[str, float]]
    limit_bytes: float

    @property
    def peak_bytes(self) -> float:
        """The largest phase."""
        return max((sum(parts.values()) for parts in self.phases.values()), default=0.0)

    @property
    def peak_phase(self) -> str:
        """Its name."""
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def verdict(self) -> Verdict:
        """Whether it fits; between 90 % and all of the memory is "tight"."""
        share = self.peak_bytes / self.limit_bytes
        return "fits" if share <= TIGHT_SHARE else "tight" if share <= 1 else "too large"


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


@dataclass(frozen=True)
class CardForecast:
    """One card's forecast."""

    card: CardRow
    memory: Memory
    times: Times


@dataclass(frozen=True)
class Forecast:
    """Everything `simpletuner plan` tells about a run.

    Attributes:
        cost: The model's arithmetic.
        trained: What is trained.
        data: Data plan; an assumed one where the clips were not read, None without a data set.
        length: Steps, checkpoints, validations.
        disk: What is written.
        streaming: Where the frozen weights are.
        cards: One forecast per card.
    """

    cost: ModelCost
    trained: TrainedPart
    data: DataPlan | None
    length: RunLength
    disk: DiskPlan
    streaming: StreamingPlan
    cards: tuple[CardForecast, ...]

    @property
    def trained_values(self) -> int:
        """Number of trained values."""
        return trained_values(self.cost, self.trained)


def forecast_run(config: RunConfig, survey: Survey | None, cards: Sequence[CardRow], machine: Machine) -> Forecast:
    """The forecast of a run.

    Args:
        config: The run; `model_family` must be set.
        survey: Its data, or None where they were not read: clips of the wanted size are assumed then.
        cards: For which cards.
        machine: Gives cores and memory where a card is the CPU.
    """
    cost = cost_source(str(config.model.model_family)).find(config.model)
    trained = find_trained_part(config, cost)
    data = plan_data(config, survey) if survey is not None and survey.samples else assume_data(config)
    length = plan_length(config, data)
    disk = plan_disk(config, data, length, cost, trained)
    streaming = plan_streaming(config.memory, cost, trained)
    desk = _Desk(config, cost, trained, data, length, machine, streaming)
    return Forecast(
        cost, trained, data, length, disk, streaming,
        tuple(CardForecast(card, desk.memory(card), desk.times(card)) for card in cards),
    )  # fmt: skip


def choose_cards(name: str, machine: Machine) -> tuple[CardRow, ...]:
    """The cards to tell about: the named one, "all", or with no name the machine's own, else the usual ones.

    Raises:
        UserError: If the name is not known.
    """
    if name == "all":
        return tuple(_own_cpu(machine) if row.per_core else row for row in CARDS.values())
    if name:
        row = find_card(name)
        return (_own_cpu(machine) if row.per_core else row,)
    own = own_card(machine)
    return (own,) if own is not None else (*(CARDS[key] for key in USUAL), _own_cpu(machine))


def _trained_layers(config: RunConfig, cost: ModelCost) -> tuple[tuple[str, ...], int | None]:
    """Layers with an adapter, and its values where they do not follow from `lora_rank`."""
    source, layers = cost_source(str(config.model.model_family)), cost.linear_layers
    if config.lycoris is None:
        named = config.adapter.peft_lora_target_modules
        endings = tuple(named) if named else (str(config.adapter.lora_targets),)
        return source.match_targets(layers, endings)[0], None
    default = FAMILIES[str(config.model.model_family)].module_classes[0]
    kinds = lycoris_layers(config.lycoris, layers, source, default)
    return tuple(kinds), sum(kind.values(*layers[name]) for name, kind in kinds.items())


def _own_cpu(machine: Machine) -> CardRow:
    return replace(CARDS["cpu"], label=f"CPU, {machine.cores} core{'s' if machine.cores > 1 else ''}")


def own_card(machine: Machine) -> CardRow | None:
    """The row of the machine's own card, with its real memory; None without a card that is known."""
    row = match_card(machine.card_name) if machine.card_name else None
    return replace(row, memory_bytes=machine.card_bytes) if row is not None and machine.card_bytes else row


def find_trained_part(config: RunConfig, cost: ModelCost) -> TrainedPart:
    """What the configuration trains, in terms of costs; targets that match no layer are left out."""
    optimizer = OPTIMIZERS[config.optimizer.optimizer]
    precision = config.precision
    stored = str(precision.base_model_precision)
    narrow = precision.base_model_default_dtype if is_quantized(stored) else precision.mixed_precision
    weight_bytes = 2 if narrow == "bf16" else 4
    kind: Literal["lora", "full"] = "full" if str(config.model.model_type) == "full" else "lora"
    targets, values = _trained_layers(config, cost) if kind == "lora" else ((), None)
    return TrainedPart(
        kind=kind,
        targets=targets,
        lora_rank=config.adapter.lora_rank,
        values=values,
        weight_bytes=weight_bytes,
        parameter_bytes=2 if optimizer.parameter_dtype == "bf16" else 4,
        state_bytes=optimizer.state_bytes,
        checkpointing=config.memory.blocks_recomputed(cost.blocks[0]) / cost.blocks[0],
        stored=stored,
    )


class _Desk:
    """Puts operations, bytes and rates together for one run."""

    def __init__(
        self, config: RunConfig, cost: ModelCost, trained: TrainedPart, data: DataPlan | None, length: RunLength,
        machine: Machine, streaming: StreamingPlan,
    ) -> None:  # fmt: skip
        self._config = config
        self._cost = cost
        self._trained = trained
        self._data = data
        self._length = length
        self._machine = machine
        self._streaming = streaming
        self._text_tokens = config.model.tokenizer_max_length
        self._text_bytes = 2 if config.precision.mixed_precision == "bf16" else 4
        self._vae_bytes = 2 if config.precision.vae_dtype == "bf16" else 4
        self._tiling = config.caching.vae_enable_tiling

    # Time ------------------------------------------------------------------------------------------

    def times(self, card: CardRow) -> Times:
        step = self._step_seconds(card)
        steps = self._length.steps
        each = self._validation_seconds(card)
        weights = self._cost.parameters["transformer"] * self._trained.weight_bytes
        return Times(
            start=START_SECONDS + weights / READ_BYTES_PER_SECOND,
            captions=self._caption_seconds(card),
            clips=self._clip_seconds(card),
            step=step,
            training=step * steps if step is not None and steps else None,
            validation_each=each,
            validation=each * self._length.validations,
            evaluation=self._evaluation_seconds(card) * self._length.evaluations,
        )

    def _seconds(self, work: Operations, card: CardRow, value_bytes: int = 2) -> float:
        """Seconds of some work: a GPU waits for its host or the host for it; a CPU does one after the other."""
        cores = self._machine.cores if card.per_core else 1
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
        if self._data is None or not self._data.batches_per_epoch:
            return None
        epoch = 0.0
        for line in self._data.buckets:
            clip = self._cost.train_clip(line.tokens, self._text_tokens, self._trained)
            work = clip.times(line.draws / line.batches, launches=1)
            again = self._cost.forward(line.tokens, self._text_tokens).times(line.draws / line.batches, launches=1)
            work += again.times(self._config.rollout.extra_forwards)
            seconds = self._seconds(work, card, self._trained.weight_bytes)
            epoch += line.batches * self._streaming.seconds(seconds, 2, card)  # forward, and again going backward
        batches = float(self._config.schedule.gradient_accumulation_steps)
        if self._data.steps_per_epoch:
            batches = self._data.batches_per_epoch / self._data.steps_per_epoch
        values = trained_values(self._cost, self._trained)
        bytes_moved = values * 2 * (2 * self._trained.parameter_bytes + self._trained.state_bytes)
        update = bytes_moved / card.bandwidth_bytes + OPTIMIZER_LAUNCHES * card.launch_seconds
        return epoch / self._data.batches_per_epoch * batches + update

    def _caption_seconds(self, card: CardRow) -> float | None:
        if self._data is None or self._data.is_assumed:
            return None
        count = len(self._data.captions) + 2 + len(self._config.prompts)
        batch = min(self._config.caching.text_encoder_batch_size, count)
        work = self._cost.encode_text(self._text_tokens).times(count, launches=math.ceil(count / batch))
        load = self._cost.parameters["text"] * self._text_bytes / READ_BYTES_PER_SECOND
        return load + self._seconds(work, card, self._trained.weight_bytes)

    def _clip_seconds(self, card: CardRow) -> float | None:
        """Encoding overlaps with decoding: the slower of the two counts."""
        if self._data is None or self._data.is_assumed:
            return None
        encoding = decoding = 0.0
        threads = min(self._config.caching.max_workers, self._machine.cores)
        for bucket, count in self._data.encoded_buckets.items():
            work = self._cost.encode_clip(bucket.width, bucket.height, bucket.num_frames, tiling=self._tiling)
            encoding += count * self._seconds(work, card, self._vae_bytes)
        for sample in (*self._data.samples, *self._data.evaluation):
            pixels = sample.info.width * sample.info.height * sample.frames.num_frames
            decoding += pixels / DECODED_PIXELS_PER_SECOND / threads
        return self._autoencoder_bytes / READ_BYTES_PER_SECOND + max(encoding, decoding)

    def _validation_seconds(self, card: CardRow) -> float:
        """All videos of one validation."""
        settings = self._config.validation
        if not self._length.videos_each:
            return 0.0
        halves = 2 if settings.validation_guidance > 1 else 1
        seconds = self._autoencoder_bytes / READ_BYTES_PER_SECOND
        for width, height in video_sizes(self._config):
            call = self._cost.forward(self._tokens(width, height), self._text_tokens)
            steps = settings.validation_num_inference_steps
            sampling = self._seconds(call.times(halves * steps, launches=steps), card, self._trained.weight_bytes)
            seconds += len(self._config.prompts) * (
                self._streaming.seconds(sampling, steps, card)
                + self._seconds(
                    self._cost.decode_clip(width, height, settings.num_frames, tiling=self._tiling), card,
                    self._vae_bytes,
                )
            )  # fmt: skip
        return seconds

    def _evaluation_seconds(self, card: CardRow) -> float:
        """One measurement of the evaluation loss: a forward pass per clip and noise level."""
        if self._data is None:
            return 0.0
        levels, batch = self._config.evaluation.eval_timesteps, self._config.schedule.train_batch_size
        calls = math.ceil(levels / batch)
        seconds = 0.0
        for ident, count in self._length.clips_each.items():
            found = [sample.bucket for sample in self._data.evaluation if sample.dataset == ident]
            for bucket, there in Counter(found).items():
                pass_ = self._cost.forward(self._tokens_of(bucket), self._text_tokens).times(levels, launches=calls)
                clip = self._streaming.seconds(self._seconds(pass_, card, self._trained.weight_bytes), calls, card)
                # Which clips are chosen depends on their names; the sizes of the whole set stand for theirs.
                seconds += clip * count * there / len(found)
        return seconds * self._weights_measured

    @property
    def _weights_measured(self) -> int:
        average = self._config.average
        return 2 if average.use_ema and average.ema_validation == "comparison" else 1

    def _tokens_of(self, bucket: BucketKey) -> int:
        grid = FAMILIES[str(self._config.model.model_family)].grid
        return math.prod(grid.latent_shape(bucket.width, bucket.height, bucket.num_frames)[1:])

    def _tokens(self, width: int, height: int) -> int:
        """Tokens of one validation video."""
        return self._tokens_of(BucketKey(width, height, self._config.validation.num_frames))

    # Memory ----------------------------------------------------------------------------------------

    def memory(self, card: CardRow) -> Memory:
        phases: dict[str, Mapping[str, float]] = {}
        if self._data is not None:
            phases["encoding captions"] = self._caption_memory(card)
            phases["encoding clips"] = self._clip_memory(card)
            phases["training"] = self._training_memory(card)
        if self._length.validations:
            phases["validation"] = self._validation_memory(card)
        return Memory(phases, card.memory_bytes or self._machine.memory_bytes)

    @property
    def _autoencoder_bytes(self) -> float:
        return (self._cost.parameters["encoder"] + self._cost.parameters["decoder"]) * self._vae_bytes

    def _held(self, card: CardRow) -> dict[str, float]:
        """What stays on the card from the first step to the last."""
        t, values = self._trained, trained_values(self._cost, self._trained)
        offloaded = self._config.optimizer.optimizer_cpu_offload_method == "cpu" and not card.per_core
        states = 0.0 if offloaded else values * t.state_bytes
        held = {"trained values": values * t.parameter_bytes, "optimizer states": states}
        if t.kind == "lora":
            held = {"weights": self._streaming.resident_bytes, **held}
        average = self._config.average
        if average.use_ema and average.ema_device == "accelerator":
            held["averaged weights"] = values * AVERAGE_BYTES
        return held

    def _caption_memory(self, card: CardRow) -> dict[str, float]:
        tokens = self._text_tokens * self._config.caching.text_encoder_batch_size
        return {
            "text encoder": self._cost.stored_bytes(
                "text", str(self._config.precision.text_encoder_1_precision), self._text_bytes
            ),
            # The widest moment of a T5 layer: input, two branches of the feed-forward part and their product.
            "activations": tokens * self._cost.text_width * 10.0 * self._trained.weight_bytes,
            "context": card.context_bytes,
        }

    def _clip_memory(self, card: CardRow) -> dict[str, float]:
        buckets = set(self._data.encoded_buckets) if self._data else set()
        batch = self._config.caching.vae_batch_size
        return {
            "autoencoder": self._autoencoder_bytes,
            "activations": _largest(
                buckets, lambda b: self._cost.encode_bytes(
                    b.width, b.height, b.num_frames, tiling=self._tiling, value_bytes=self._vae_bytes
                )
            ),
            "pixels": _largest(buckets, lambda b: 3.0 * b.width * b.height * b.num_frames * 4 * batch),
            "context": card.context_bytes,
        }  # fmt: skip

    def _training_memory(self, card: CardRow) -> dict[str, float]:
        lines = self._data.buckets if self._data else ()
        tokens = max((line.tokens * line.batch_size for line in lines), default=0)
        batch = max((line.batch_size for line in lines), default=0)
        channels = max((line.latent_shape[0] for line in lines), default=0)
        # Latents, noise, mixture and target in float32, and the text features.
        inputs = tokens * channels * 4 * 4.0 + batch * self._text_tokens * self._cost.text_width * 4.0
        return {
            **self._held(card),
            "gradients": self._gradients_held() * self._gradient_bytes,
            "activations": self._cost.activation_bytes(tokens, self._trained),
            "batch": inputs,
            "context": card.context_bytes,
        }

    @property
    def _gradient_bytes(self) -> float:
        """Bytes of a gradient; over several micro-batches they add up in float32 (`training/gradient_sums.py`)."""
        adds_up = self._config.schedule.gradient_accumulation_steps > 1
        adds_up = adds_up and self._config.precision.gradient_precision != "unmodified"
        return 4.0 if adds_up else float(self._trained.parameter_bytes)

    def _gradients_held(self) -> int:
        """Gradients in memory together: all of them, or the largest where they are released."""
        if not self._config.optimizer.optimizer_release_gradients:
            return trained_values(self._cost, self._trained)
        sides = self._cost.linear_layers.values()
        if self._trained.kind == "full":
            return max(rows * columns for rows, columns in sides)
        return self._trained.lora_rank * max(max(pair) for pair in sides)

    def _validation_memory(self, card: CardRow) -> dict[str, float]:
        settings = self._config.validation
        sizes = video_sizes(self._config)
        tokens = max((self._tokens(w, h) for w, h in sizes), default=0)
        halves = 2 if settings.validation_guidance > 1 else 1
        once = replace(self._trained, checkpointing=1.0)
        decoding = max(
            (
                self._cost.decode_bytes(w, h, settings.num_frames, tiling=self._tiling, value_bytes=self._vae_bytes)
                for w, h in sizes
            ),
            default=0.0,
        )
        # A forward pass without gradients holds less than one block going backward.
        sampling = self._cost.activation_bytes(tokens * halves, once) / 2
        return {
            **self._held(card),
            "autoencoder": self._autoencoder_bytes,
            "activations": max(sampling, decoding),
            "context": card.context_bytes,
        }


def _largest(items: Iterable[BucketKey], size: Callable[[BucketKey], float]) -> float:
    return max((size(item) for item in items), default=0.0)


def told_seconds(seconds: float | None) -> str:
    """A duration for people; a dash where it cannot be told."""
    return "–" if seconds is None else told_duration(seconds)
