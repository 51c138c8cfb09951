"""Two whole optimizer steps on the largest batch before step 1, to know that they fit; nothing of them stays.

Two, because the optimizer's states come with the first: what a step holds from then on is seen in the second. The
step is the real one (`take_step`) on a state of its own: optimizer, sums and averages are made for it and
dropped. Trained weights, companions and random states are put back to the last bit, so that the run is the same with
and without. What stays are the dials of recomputed blocks and of parts of a batch where they had to be turned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from simpletuner.core.errors import ExitCode, UserError
from simpletuner.data.batch import Batch
from simpletuner.runtime.host import release_memory
from simpletuner.runtime.meter import MemoryMeter
from simpletuner.training.build import Trainable
from simpletuner.training.companions import Companions
from simpletuner.training.optim.released import ReleasedOptimizer
from simpletuner.training.out_of_memory import DoesNotFitError, need_less
from simpletuner.training.state import StateSettings, TrainState
from simpletuner.training.step import Objective, take_step

_STEPS: Final = 2
_ADVICE: Final = (
    "Lower the clips' frames or resolution, set enable_group_offload, or choose a smaller "
    "base_model_precision; memory_budget chooses for you"
)


@dataclass(frozen=True)
class Probe:
    """What the largest batch took.

    Attributes:
        peak_bytes: The most that tensors held at once, the model included.
        recomputed: Blocks that were recomputed then.
        tokens_per_pass: Most latent cells of one pass then, None for whole batches.
        turned: Whether a dial had to be turned for it.
        seconds: How long it took.
    """

    peak_bytes: int
    recomputed: int
    tokens_per_pass: int | None
    turned: bool
    seconds: float


def probe_step(
    trainable: Trainable,
    objective: Objective,
    companions: Companions | None,
    batch: Batch,
    config: StateSettings,
    total_steps: int,
    *,
    limit_bytes: float = 0.0,
    tell: Callable[[str], None],
) -> Probe:
    """Take two steps on `batch` and undo them.

    Args:
        trainable: The model.
        objective: Batch -> loss terms.
        companions: What objectives train beside the model.
        batch: The largest one of the run, on the CPU.
        config: As for the real state.
        total_steps: Of the run.
        limit_bytes: What the step may take; above it a dial is turned as if memory had run out. 0 for no limit.
        tell: Told when a dial is turned.

    Raises:
        UserError: If a clip alone does not fit with every block recomputed (`DoesNotFitError`).
    """
    started, before = time.perf_counter(), _dials(trainable)
    while True:
        with _undone(trainable, companions):
            peak = _step(trainable, objective, companions, batch, config, total_steps, tell)
        release_memory()
        if peak is not None and not (limit_bytes and peak > limit_bytes):
            break
        done = need_less(trainable)
        if not done:
            raise _does_not_fit(batch, peak, limit_bytes)
        tell(f"the largest batch did not fit: from here on {done}")
    after = _dials(trainable)
    return Probe(peak, *after, after != before, time.perf_counter() - started)


def _dials(trainable: Trainable) -> tuple[int, int | None]:
    """Recomputed blocks, and the most latent cells of a pass."""
    return trainable.dial.recomputed if trainable.dial is not None else 0, trainable.passes.tokens


def _step(
    trainable: Trainable, objective: Objective, companions: Companions | None, batch: Batch, config: StateSettings,
    total_steps: int, tell: Callable[[str], None],
) -> int | None:  # fmt: skip
    """The peak of the steps; None where memory ran out with nothing left to turn, or while the weights moved."""
    source = _OneStep(batch, config.schedule.gradient_accumulation_steps)
    with MemoryMeter(trainable.device, _all_tensors(trainable, companions)) as meter:
        state = TrainState.begin(trainable, source, config, total_steps, companions)
        try:
            trainable.transformer.train()
            # A broken loss says nothing about memory: such a step is passed over, and told when it really comes.
            for _ in range(_STEPS):
                take_step(state, objective, skips=True, tell=tell)
        except DoesNotFitError:
            return None
        except UserError as error:
            if error.exit_code != ExitCode.NUMERICS:
                raise
            return None
        finally:
            _dismiss(state)
    return meter.peak_bytes


class _OneStep:
    """Fulfils `BatchSource`: the same batch for each micro-batch of a step."""

    def __init__(self, batch: Batch, accumulation: int) -> None:
        # Two show all that many would: gradients add up while activations are there.
        self._count = min(accumulation, 2)
        self._batch, self._given = replace(batch, share=1 / self._count), 0

    def __next__(self) -> Batch:
        self._given += 1
        return replace(self._batch, ends_step=self._given % self._count == 0)

    def state_dict(self) -> dict[str, int]:
        return {"given": self._given}

    def load_state_dict(self, state: dict[str, int]) -> tuple[str, ...]:
        self._given = state["given"]
        return ()


@contextmanager
def _undone(trainable: Trainable, companions: Companions | None) -> Iterator[None]:
    """Put weights and random states back when the block is left; copies wait in RAM, where they count for nothing."""
    weights = trainable.tensors()
    beside = companions.tensors(_to_ram) if companions is not None else {}
    devices = [trainable.device] if trainable.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            for parameter in trainable.parameters.values():
                parameter.grad = None
            trainable.load_tensors(weights)
            if companions is not None:
                companions.drop_gradients()
                companions.load_tensors(beside)


def _to_ram(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _dismiss(state: TrainState) -> None:
    """Take the state's listeners off the parameters."""
    if isinstance(state.optimizer, ReleasedOptimizer):
        state.optimizer.close()
    if state.sums is not None:
        state.sums.close()


def _all_tensors(trainable: Trainable, companions: Companions | None) -> list[Tensor]:
    kept: list[Tensor] = []
    if companions is not None:
        companions.tensors(lambda tensor: kept.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return [*trainable.held_tensors(), *kept]


def _does_not_fit(batch: Batch, peak: int | None, limit_bytes: float) -> DoesNotFitError:
    clips = len(batch.sample_numbers)
    shape = f"{clips} clip{'s' if clips > 1 else ''} of {batch.bucket}"
    measured = f": it takes {peak / 1e9:.2f} GB of {limit_bytes / 1e9:.2f} GB" if peak is not None else ""
    return DoesNotFitError(
        f"the largest batch of the run, {shape}, does not fit into memory{measured}",
        "It was tried before step 1, clip by clip with every block recomputed; nothing has been trained",
        _ADVICE,
    )
