"""Bringing the numbers of a step from the device to the host without making the device wait.

A step leaves all its scalars in one small tensor. On an accelerator that tensor is copied into
page-locked memory behind the step's own work and read one step later; on the CPU it is read at once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from simpletuner.core.errors import ExitCode, UserError
from simpletuner.data.batch import Batch
from simpletuner.events.types import StepFinished, StepSkipped
from simpletuner.objectives.terms import LossTerm, band_means
from simpletuner.runtime.host import used_memory
from simpletuner.training.movement import LOOK_EVERY

# Samples named in a message about numbers that are none.
_NAMED_SAMPLES = 8


@dataclass(frozen=True)
class TermPart:
    """What the host knows about one term of one micro-batch, in the order of the packed numbers."""

    term: str
    weight: float
    share: float
    names: tuple[str, ...]
    sigmas: tuple[float, ...]
    per_sample: bool


@dataclass(frozen=True)
class Fault:
    """Why a step must not be taken: its loss or a gradient is no finite number.

    Attributes:
        step: Its number, from 1.
        epoch: Its epoch.
        found: What is no number.
        samples: Those whose loss is to blame, or all of the step where no single one is.
    """

    step: int
    epoch: int
    found: str
    samples: tuple[str, ...]

    @property
    def named(self) -> str:
        """The samples for a message; of many only some."""
        more = f" and {len(self.samples) - _NAMED_SAMPLES} more" if len(self.samples) > _NAMED_SAMPLES else ""
        return f"{', '.join(self.samples[:_NAMED_SAMPLES])}{more}"

    def as_event(self) -> StepSkipped:
        """What is told where the step is passed over."""
        return StepSkipped(self.step, self.epoch, self.found, self.samples)

    def as_error(self) -> UserError:
        """What is raised where the run ends with it (exit code 5)."""
        return UserError(
            f"step {self.step}: {self.found}, with {self.named}",
            "Training on would ruin the weights, so the run stops; nothing of this step was saved, and the last "
            "checkpoint is good",
            "Lower learning_rate or set max_grad_norm, look at the clips named, and start again from the last "
            "checkpoint",
            exit_code=ExitCode.NUMERICS,
        )


@dataclass
class StepNumbers:
    """Collects the scalars of one optimizer step.

    Attributes:
        step: Number of the step, from 1.
        learning_rate: Rate of the step.
        started: Clock when the step began, seconds.
        epoch, samples, tokens: Of the micro-batches noted so far.
        parts: What the host knows of each noted term.
        scalars: What the device has computed for it: its mean, and its losses per sample if any.
        still: Whether no weight has moved since the last look; None where nobody looked.
    """

    step: int
    learning_rate: float
    started: float = field(default_factory=time.perf_counter)
    epoch: int = 0
    samples: int = 0
    tokens: int = 0
    parts: list[TermPart] = field(default_factory=list)
    scalars: list[Tensor] = field(default_factory=list)
    still: Tensor | None = None

    def add(self, batch: Batch, terms: Sequence[LossTerm]) -> None:
        """Note the terms of one micro-batch; nothing is read from the device."""
        self.epoch = batch.epoch
        self.samples += len(batch.sample_numbers)
        self.tokens += batch.latents[:, 0].numel()
        for term in terms:
            sigmas = () if term.sigmas is None else tuple(term.sigmas.tolist())
            self.parts.append(
                TermPart(
                    term.name,
                    0.0 if term.is_reported_only else term.weight,
                    batch.share,
                    batch.sample_names,
                    sigmas,
                    term.per_sample is not None,
                )
            )
            self.scalars.append(term.value.detach().reshape(1))
            if term.per_sample is not None:
                self.scalars.append(term.per_sample)

    def send(self, gradient_norm: Tensor) -> PendingStep:
        """Start the copy to the host of everything noted, and of the gradient norm."""
        noted = [*self.scalars, *([] if self.still is None else [self.still.reshape(1).float()])]
        packed = torch.cat([gradient_norm.reshape(1), *noted])
        lengths = [scalar.numel() for scalar in noted]
        if packed.device.type != "cuda":
            return PendingStep(self, packed, lengths)
        landed = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
        landed.copy_(packed, non_blocking=True)
        arrival = torch.cuda.Event()
        arrival.record()
        return PendingStep(self, landed, lengths, arrival, packed)


@dataclass
class PendingStep:
    """A step whose numbers are on their way.

    Attributes:
        numbers: What the host knows.
        packed: Where the device's numbers land: the gradient norm, then the noted ones.
        lengths: How many numbers each noted tensor has.
        arrival: When they have landed; None where they are there already.
        at_source: The same numbers on the device, there at once for what is computed next.
    """

    numbers: StepNumbers
    packed: Tensor
    lengths: list[int]
    arrival: torch.cuda.Event | None = None
    at_source: Tensor | None = None

    @property
    def waits(self) -> bool:
        """Whether reading now would make the host wait for an accelerator."""
        return self.arrival is not None

    @cached_property
    def values(self) -> tuple[float, list[list[float]]]:
        """Gradient norm, and the numbers of each noted tensor; waits until they have arrived."""
        if self.arrival is not None:
            self.arrival.synchronize()
        norm, *flat = self.packed.tolist()
        rows = []
        for length in self.lengths:
            rows.append(flat[:length])
            del flat[:length]
        return norm, rows

    @cached_property
    def fault(self) -> Fault | None:
        """What is broken about the step, None for a sound one; waits until the numbers have arrived."""
        norm, rows = self.values
        if math.isfinite(norm) and all(math.isfinite(value) for row in rows for value in row):
            return None
        numbers = self.numbers
        lost = [name for name, loss in self._losses() if not math.isfinite(loss)]
        found = "the loss is not a finite number" if lost else f"the gradient norm is {norm}"
        names = lost or [name for part in numbers.parts for name in part.names]
        return Fault(numbers.step, numbers.epoch, found, tuple(dict.fromkeys(names)))

    def finish(self, device: torch.device, previous_finished: float) -> StepFinished:
        """The event of a sound step; the time is the one from the end of the step before."""
        numbers = self.numbers
        return StepFinished(
            step=numbers.step,
            epoch=numbers.epoch,
            loss=self._total(),
            learning_rate=numbers.learning_rate,
            gradient_norm=self.values[0],
            samples=numbers.samples,
            tokens=numbers.tokens,
            seconds=time.perf_counter() - max(numbers.started, previous_finished),
            memory_bytes=used_memory(device),
            terms=self._terms(),
            still_steps=LOOK_EVERY if numbers.still is not None and self.values[1][-1] == [1.0] else 0,
        )

    def _total(self) -> float:
        return sum(part.share * part.weight * value for part, value, _ in self._rows())

    def _terms(self) -> dict[str, float]:
        named: dict[str, float] = {}
        sigmas: list[float] = []
        losses: list[float] = []
        for part, value, per_sample in self._rows():
            named[part.term] = named.get(part.term, 0.0) + part.share * value
            if part.sigmas:
                sigmas += part.sigmas
                losses += per_sample
        several = named if len(named) > 1 else {}
        return {**several, **band_means(sigmas, losses)}

    def _losses(self) -> list[tuple[str, float]]:
        return [pair for part, _, losses in self._rows() for pair in zip(part.names, losses, strict=False)]

    def _rows(self) -> list[tuple[TermPart, float, list[float]]]:
        """Each part with its mean and its losses per sample (empty if the term has none)."""
        rows = iter(self.values[1])
        return [(part, next(rows)[0], next(rows) if part.per_sample else []) for part in self.numbers.parts]
