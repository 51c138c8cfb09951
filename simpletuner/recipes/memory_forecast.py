"""What a run holds in the memory of one card, phase by phase and part by part.

Weights, states and gradients are counted exactly; activations by constants counted on the real classes
(`models/*/cost.py`). No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from simpletuner.config.catalogs.cards import CardRow
from simpletuner.config.sections.memory import clips_per_pass
from simpletuner.data.sample import BucketKey
from simpletuner.recipes.disk_plan import AVERAGE_BYTES, trained_values
from simpletuner.recipes.forecast_task import Task
from simpletuner.recipes.residence import KEPT, kept_bytes
from simpletuner.recipes.run_length import video_sizes
from simpletuner.recipes.streaming_plan import GROUPS_ON_DEVICE

Verdict = Literal["fits", "tight", "too large"]

# Parameters that an optimizer of ours updates together, in float32 copies of them and their gradients; see
# `training/optim/buckets.py`, which a plan does not import. More than the activations in the smallest models only.
UPDATED_TOGETHER = 4 * 1024 * 1024
TIGHT_SHARE = 0.9  # of the card's memory; above it a forecast cannot promise that it fits


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


def forecast_memory(task: Task, card: CardRow) -> Memory:
    """The memory of a run on `card`."""
    return _Scales(task).memory(card)


class _Scales:
    """Weighs each phase of one run."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def memory(self, card: CardRow) -> Memory:
        phases: dict[str, Mapping[str, float]] = {}
        if self._task.data is not None:
            phases["encoding captions"] = self._caption_memory(card)
            phases["encoding clips"] = self._clip_memory(card)
            phases["training"] = self._training_memory(card)
        if self._task.length.validations:
            phases["denoising videos"] = self._denoising_memory(card)
            if self._task.config.validation.validation_preview:
                phases["previews"] = self._preview_memory(card)
            phases["decoding videos"] = self._decoding_memory(card)
        return Memory(phases, card.memory_bytes or self._task.machine.memory_bytes)

    def _held(self, card: CardRow) -> dict[str, float]:
        """What stays on the card from the first step to the last."""
        t, values = self._task.trained, trained_values(self._task.cost, self._task.trained)
        offloaded = self._task.config.optimizer.optimizer_cpu_offload_method == "cpu" and not card.per_core
        states = 0.0 if offloaded else values * t.state_bytes
        held = {"trained values": values * t.parameter_bytes, "optimizer states": states}
        if t.kind == "lora":
            held = {"weights": self._task.streaming.resident_bytes, **held}
        average = self._task.config.average
        if average.use_ema and average.ema_device == "accelerator":
            held["averaged weights"] = values * AVERAGE_BYTES
        return held

    def _caption_memory(self, card: CardRow) -> dict[str, float]:
        tokens = self._task.text_tokens * self._task.config.caching.text_encoder_batch_size
        return {
            "text encoder": self._text_encoder_bytes,
            # The widest moment of a T5 layer: input, two branches of the feed-forward part and their product.
            "activations": tokens * self._task.cost.text_width * 10.0 * self._task.trained.weight_bytes,
            "context": card.context_bytes,
        }

    def _clip_memory(self, card: CardRow) -> dict[str, float]:
        buckets = self._encoded_buckets()
        batch = self._task.config.caching.vae_batch_size
        return {
            "autoencoder": self._task.autoencoder_bytes,
            "activations": self._encoding_bytes() * batch,
            "pixels": _largest(buckets, lambda b: 3.0 * b.width * b.height * b.num_frames * 4 * batch),
            "context": card.context_bytes,
        }

    def _encoded_buckets(self) -> set[BucketKey]:
        return set(self._task.data.encoded_buckets) if self._task.data else set()

    def _encoding_bytes(self) -> float:
        """Tensors of the encoder for one clip."""
        task = self._task
        return _largest(
            self._encoded_buckets(),
            lambda b: task.cost.encode_bytes(
                b.width, b.height, b.num_frames, tiling=task.tiling, value_bytes=task.vae_bytes
            ),
        )

    def _training_memory(self, card: CardRow) -> dict[str, float]:
        lines = self._task.data.buckets if self._task.data else ()
        limit = self._task.config.memory.max_tokens_per_pass
        tokens = max((line.tokens * line.batch_size for line in lines), default=0)
        at_once = max((line.tokens * clips_per_pass(line.batch_size, line.tokens, limit) for line in lines), default=0)
        batch = max((line.batch_size for line in lines), default=0)
        channels = max((line.latent_shape[0] for line in lines), default=0)
        # Latents, noise, mixture and target in float32, and the text features.
        inputs = tokens * channels * 4 * 4.0 + batch * self._task.text_tokens * self._task.cost.text_width * 4.0
        return {
            **self._held(card),
            **self._waiting_encoders(),
            "gradients": self._gradients_held() * self._gradient_bytes,
            "activations": max(self._task.cost.activation_bytes(at_once, self._task.trained), self._update_bytes),
            "batch": inputs,
            **self._kept_caches(card),
            "context": card.context_bytes,
        }

    def _kept_caches(self, card: CardRow) -> dict[str, float]:
        """Cached clips and captions that stay in memory: in that of the machine, which is a CPU's own."""
        task, data = self._task, self._task.data
        if data is None or data.is_assumed or not card.per_core:
            return {}
        samples = (*data.samples, *data.evaluation)
        kept = kept_bytes(task.config, samples, task.cost.text_width, task.machine)
        return {KEPT: float(kept)} if kept else {}

    @property
    def _gradient_bytes(self) -> float:
        """Bytes of a gradient; over several micro-batches they add up in float32 (`training/gradient_sums.py`)."""
        config = self._task.config
        adds_up = config.schedule.gradient_accumulation_steps > 1 or config.memory.max_tokens_per_pass is not None
        adds_up = adds_up and config.precision.gradient_precision != "unmodified"
        return 4.0 if adds_up else float(self._task.trained.parameter_bytes)

    @property
    def _update_bytes(self) -> float:
        """Copies that an update makes when the activations are gone."""
        if not self._task.config.optimizer.optimizer.startswith("adamw_bf16"):
            return 0.0
        return 8.0 * min(trained_values(self._task.cost, self._task.trained), UPDATED_TOGETHER)

    def _gradients_held(self) -> int:
        """Gradients in memory together: all of them, or the largest where they are released."""
        if not self._task.config.optimizer.optimizer_release_gradients:
            return trained_values(self._task.cost, self._task.trained)
        sides = self._task.cost.linear_layers.values()
        if self._task.trained.kind == "full":
            return max(rows * columns for rows, columns in sides)
        return self._task.trained.lora_rank * max(max(pair) for pair in sides)

    @property
    def _text_encoder_bytes(self) -> float:
        """Of the text encoder on the card; streamed, only what is outside its blocks and two of these."""
        cost, precision = self._task.cost, str(self._task.config.precision.text_encoder_1_precision)
        whole = cost.stored_bytes("text", precision, self._task.text_bytes)
        if not self._task.config.memory.group_offload_text_encoder:
            return whole
        away = max(cost.text_blocks - GROUPS_ON_DEVICE, 0)
        return whole - away * cost.stored_bytes("text block", precision, self._task.text_bytes)

    def _waiting_encoders(self) -> dict[str, float]:
        """Encoders that stay in memory while training runs."""
        caching, found = self._task.config.caching, {}
        encodes = caching.vae_cache_ondemand or caching.vae_cache_disable or not caching.vae_cache_preprocess
        if encodes or caching.keep_vae_loaded:
            found["autoencoder"] = self._task.autoencoder_bytes
        if encodes:
            found["encoding on demand"] = self._encoding_bytes()
        if caching.text_cache_ondemand or caching.text_cache_disable:
            found["text encoder"] = self._text_encoder_bytes
        return found

    def _denoising_memory(self, card: CardRow) -> dict[str, float]:
        """A step of the largest video; the autoencoder waits elsewhere unless it is kept."""
        kept = self._task.config.caching.keep_vae_loaded or card.per_core
        return {
            **self._held(card),
            **({"autoencoder": self._task.autoencoder_bytes} if kept else {}),
            "activations": self._denoising_bytes(),
            "context": card.context_bytes,
        }

    def _decoding_memory(self, card: CardRow) -> dict[str, float]:
        """Latents to pixels; with enable_model_cpu_offload the transformer's frozen weights are away meanwhile."""
        held = self._held(card)
        if self._task.config.memory.enable_model_cpu_offload and not card.per_core:
            held.pop("weights", None)
        return {
            **held,
            "autoencoder": self._task.autoencoder_bytes,
            "activations": self._decoding_bytes(),
            "context": card.context_bytes,
        }

    def _preview_memory(self, card: CardRow) -> dict[str, float]:
        """A picture between two denoising steps: the step's activations are gone, and the transformer is there."""
        parts = {**self._held(card), "context": card.context_bytes}
        if self._task.config.validation.validation_preview_decoder == "autoencoder":
            parts["autoencoder"] = self._task.autoencoder_bytes
            parts["activations"] = self._decoding_bytes()
        return parts

    def _denoising_bytes(self) -> float:
        task = self._task
        tokens = max((task.video_tokens(w, h) for w, h in video_sizes(task.config)), default=0)
        halves = 2 if task.config.validation.validation_guidance > 1 else 1
        # A forward pass without gradients holds less than one block going backward.
        return task.cost.activation_bytes(tokens * halves, replace(task.trained, checkpointing=1.0)) / 2

    def _decoding_bytes(self) -> float:
        task, frames = self._task, self._task.config.validation.num_frames
        return max(
            (
                task.cost.decode_bytes(w, h, frames, tiling=task.tiling, value_bytes=task.vae_bytes)
                for w, h in video_sizes(task.config)
            ),
            default=0.0,
        )


def _largest(items: Iterable[BucketKey], size: Callable[[BucketKey], float]) -> float:
    return max((size(item) for item in items), default=0.0)
