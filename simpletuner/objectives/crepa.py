"""CREPA: hidden states of one block agree with a teacher's features of the same and the neighbouring frames.

A small projector, trained beside the model in float32, maps hidden states to the teacher's features. The teacher is
a frozen vision encoder whose features come with the batch (made once, in the caching stage) or are made on the spot, a
later block of the model itself, or that later block looking at a cleaner clip (`self_flow.py`).

Source: Hwang et al. 2025 (arXiv 2506.09229).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from simpletuner.config.sections.guidance import CrepaSection
from simpletuner.core.errors import UserError
from simpletuner.data.batch import Batch
from simpletuner.maths.alignment import alignment_scores, course_weight, neighbour_weights
from simpletuner.objectives.auxiliary import Drawn, Predict, Seen, Surroundings, on_device
from simpletuner.objectives.self_flow import SelfFlow
from simpletuner.objectives.terms import LossTerm


class Projector(nn.Module):
    """Hidden states [.., D] -> features [.., E], float32; remembers how similar both have become.

    Attributes:
        similarity: Running mean of a frame's similarity with its own features, 0 before the first batch.
        batches: How many batches it has seen.
        off: 1 once the similarity has passed its threshold, 0 before.
    """

    similarity: Tensor
    batches: Tensor
    off: Tensor

    def __init__(self, width: int, features: int, device: torch.device, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.norm = nn.LayerNorm(width)
            self.linear = nn.Linear(width, features)
        self.register_buffer("similarity", torch.zeros(()))
        self.register_buffer("batches", torch.zeros(()))
        self.register_buffer("off", torch.zeros(()))
        self.to(device)
        # What the host knows of `off`, some steps late on a GPU: it is never waited for.
        self._known_off = torch.zeros((), pin_memory=device.type == "cuda")
        self.register_load_state_dict_post_hook(lambda *_: self._learn_off())

    def forward(self, hidden: Tensor) -> Tensor:
        projected: Tensor = self.linear(self.norm(hidden.float()))
        return projected

    @property
    def is_known_off(self) -> bool:
        """Whether the host has learnt that the term is off."""
        return bool(self._known_off)

    @torch.no_grad()
    def note(self, similarity: Tensor, settings: CrepaSection) -> None:
        """Take the similarity of one batch into the running mean, and switch off where the threshold says so.

        All on the device: nothing waits, and a resumed run switches at the same step. The host hears of it later and
        then leaves the term out, which changes nothing but the time.
        """
        decay = settings.crepa_similarity_ema_decay
        first = self.batches == 0
        self.batches += 1
        self.similarity.copy_(torch.where(first, similarity, decay * self.similarity + (1 - decay) * similarity))
        threshold = settings.crepa_similarity_threshold
        if threshold is None:
            return
        passed = (self.similarity >= threshold).to(self.off.dtype)
        self.off.copy_(torch.maximum(self.off, passed) if settings.crepa_threshold_mode == "permanent" else passed)
        self._learn_off()

    def _learn_off(self) -> None:
        self._known_off.copy_(self.off, non_blocking=True)


class Crepa:
    """Fulfils `auxiliary.Auxiliary`."""

    def __init__(self, surroundings: Surroundings, projector: Projector) -> None:
        self._settings = surroundings.crepa
        self._total_steps = surroundings.total_steps
        self._teacher = surroundings.teacher
        self.companion: nn.Module | None = projector
        self._projector = projector
        self._self_flow = SelfFlow(surroundings) if self._settings.feature_source == "self_flow" else None

    @property
    def blocks(self) -> tuple[int, ...]:
        settings = self._settings
        if settings.feature_source == "backbone" and settings.crepa_teacher_block_index is not None:
            return (settings.crepa_block_index, settings.crepa_teacher_block_index)
        return (settings.crepa_block_index,)

    def is_active(self, step: int) -> bool:
        settings = self._settings
        if settings.crepa_threshold_mode == "permanent" and self._projector.is_known_off:
            return False
        cutoff = settings.crepa_cutoff_step
        return self.weight(step) > 0 and not (cutoff and step > cutoff)

    def weight(self, step: int) -> float:
        """Weight of the term at an optimizer step, the threshold aside."""
        settings = self._settings
        return course_weight(
            step,
            weight=settings.crepa_lambda,
            end=settings.crepa_lambda_end,
            course=settings.crepa_scheduler,
            warmup_steps=settings.crepa_warmup_steps,
            decay_steps=settings.crepa_decay_steps or max(self._total_steps - settings.crepa_warmup_steps, 1),
            power=settings.crepa_power,
        )

    def prepare(self, predict: Predict, batch: Batch, drawn: Drawn, step: int) -> Drawn:
        return drawn if self._self_flow is None else self._self_flow.prepare(predict, batch, drawn)

    def terms(self, seen: Seen) -> Sequence[LossTerm]:
        """The negative score as a loss, and what it is made of."""
        settings = self._settings
        frames, height, width = seen.drawn.latents.shape[2:]
        hidden = seen.hidden[settings.crepa_block_index].unflatten(1, (frames, height * width))
        projected, teacher = self._projector(hidden), self._features(seen, frames, height * width)
        if not settings.crepa_spatial_align:
            projected, teacher = projected.mean(2, keepdim=True), teacher.mean(2, keepdim=True)
        neighbours = neighbour_weights(
            frames, settings.crepa_adjacent_distance, settings.crepa_adjacent_tau,
            cumulative=settings.crepa_cumulative_neighbors,
        )  # fmt: skip
        scores, own = alignment_scores(
            projected, teacher, on_device(neighbours, projected), by_frames=settings.crepa_normalize_by_frames,
            by_weights=settings.crepa_normalize_neighbour_sum,
        )  # fmt: skip
        score, similarity = scores.mean(), own.mean()
        gate = 1 - self._projector.off.clone()
        self._projector.note(similarity.detach(), settings)
        weight = self.weight(seen.step)
        return (
            LossTerm("crepa_loss", -score * gate, weight),
            LossTerm("crepa_alignment_score", score.detach(), is_reported_only=True),
            LossTerm("crepa_similarity_self", similarity.detach(), is_reported_only=True),
            LossTerm("crepa_weight", weight * gate, is_reported_only=True),
        )

    def _features(self, seen: Seen, frames: int, patches: int) -> Tensor:
        """The teacher's features [B, F, H W, E] of the batch; they carry no gradient."""
        settings = self._settings
        if settings.feature_source == "backbone":
            assert settings.crepa_teacher_block_index is not None
            later: Tensor = seen.hidden[settings.crepa_teacher_block_index].detach().unflatten(1, (frames, patches))
            return later
        if self._self_flow is not None:
            seen_cleaner: Tensor = self._self_flow.features.unflatten(1, (frames, patches))
            return seen_cleaner
        if seen.batch.features is not None:
            return seen.batch.features.flatten(2, 3)
        assert self._teacher is not None
        return self._teacher(seen.drawn.latents).flatten(2, 3)


def build_crepa(surroundings: Surroundings) -> Crepa:
    """The objective with a fresh projector.

    Raises:
        UserError: If a block does not exist, or there is no teacher.
    """
    settings, transformer = surroundings.crepa, surroundings.transformer
    count = len(list(transformer.get_submodule(surroundings.family.block_list)))  # type: ignore[call-overload]
    for option, number in (
        ("crepa_block_index", settings.crepa_block_index),
        ("crepa_teacher_block_index", settings.crepa_teacher_block_index),
    ):
        if number is not None and number >= count:
            raise UserError(
                f"{option} = {number}, but the model has {count} blocks",
                f"Blocks are counted from 0, so the last one is {count - 1}",
                f"Set {option} to at most {count - 1}",
            )
    width = surroundings.family.hidden_width(transformer)
    features = surroundings.feature_width if settings.needs_encoder else width
    if not features:
        raise ValueError("CREPA needs a teacher's features")
    return Crepa(surroundings, Projector(width, features, surroundings.device, surroundings.seed))
