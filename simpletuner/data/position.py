"""Where a stream of batches stands, what its order depends on, and what may change in between.

A position is kept in a checkpoint as a few integers. It must not know tensors or files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from simpletuner.core.errors import UserError
from simpletuner.data.batch_rules import ALWAYS, BatchRules
from simpletuner.data.order import DrawTable
from simpletuner.data.sample import Sample

RULE = "A resumed run trains each sample exactly as often as the undisturbed run would have"
FIX_OF_BATCHES = (
    "Set it back to train the epoch to its end, where it may change (checkpoint_epoch_interval saves there), or start "
    "a new run in another output_dir"
)
FIX = (
    "Restore what changed, or start a new run in another output_dir, which init_lora lets begin with the adapter of "
    "this one"
)


@dataclass(frozen=True)
class Position:
    """Where the next batch is.

    Attributes:
        epoch: Its epoch, from 1.
        drawn: Draws of the epoch that all processes have trained in finished steps.
        micro_steps: Micro-batches that this process has handed out in the step under way.
        step: Optimizer steps that are finished.
        first_step: Those that were when the epoch began; decides which data sets take part in it.
    """

    epoch: int
    drawn: int
    micro_steps: int
    step: int = 0
    first_step: int = 0

    def as_numbers(self) -> dict[str, int]:
        """The position as it is saved."""
        return asdict(self)


@dataclass(frozen=True)
class StreamIdentity:
    """What the order of the draws (first part) and their batches (second part) depend on.

    Attributes:
        seed: Seed of the run.
        dataset: Digest of the samples.
        mixing: Digest of how data sets are mixed.
        batch_size: Clips per batch, as the run was told.
        capacity: Digest of the clips per batch of all groups.
        groups: How many groups there are; draws of one group may share a batch.
        accumulation: Micro-batches per step and process.
        processes: Processes that train together.
    """

    seed: int
    dataset: int
    mixing: int
    batch_size: int
    capacity: int
    groups: int
    accumulation: int
    processes: int

    def as_numbers(self) -> dict[str, int]:
        """The identity as it is saved."""
        return asdict(self)

    def continue_from(self, state: Mapping[str, int]) -> tuple[Position, tuple[str, ...]]:
        """The position in `state`, and a sentence for each change since.

        Raises:
            UserError: If the stream of today cannot go on from there without losing or repeating draws.
        """
        if any(field.name not in state for kind in (Position, StreamIdentity) for field in fields(kind)):
            raise UserError(
                "the checkpoint keeps its position in the data in another way than this version",
                "The order of the samples is not the one it was made with",
                "Go on with the version that made it, or start a new run in another output_dir",
            )
        position = Position(**{field.name: state[field.name] for field in fields(Position)})
        then = StreamIdentity(**{field.name: state[field.name] for field in fields(StreamIdentity)})
        refused = self._order_changes(then)
        told = [*self._batch_changes(then), *self._step_changes(then)]
        at_rest = position.drawn == 0 and position.micro_steps == 0
        if self.dataset != then.dataset:
            pass  # other data have other batches as a matter of course
        elif position.micro_steps:
            refused += told
        elif not at_rest and not self.groups == then.groups == 1:
            refused += self._batch_changes(then)
        if refused:
            raise UserError(
                f"the run cannot continue in its data: changed since the checkpoint: {', '.join(refused)}",
                RULE,
                FIX if self._order_changes(then) else FIX_OF_BATCHES,
            )
        where = "at the beginning" if at_rest else f"after {position.drawn} samples"
        return position, tuple(f"{change}; the data goes on {where} of epoch {position.epoch}" for change in told)

    def _order_changes(self, then: StreamIdentity) -> list[str]:
        changes = []
        if self.dataset != then.dataset:
            changes.append("the data set (files, sizes, frames, number of captions or repeats)")
        if self.seed != then.seed:
            changes.append(f"seed ({then.seed} then, {self.seed} now)")
        if self.mixing != then.mixing:
            changes.append("how data sets are mixed (probability, data_backend_sampling, or when one takes part)")
        return changes

    def _batch_changes(self, then: StreamIdentity) -> list[str]:
        if self.capacity == then.capacity:
            return []
        if self.batch_size != then.batch_size:
            return [f"batch_size ({then.batch_size} then, {self.batch_size} now)"]
        return ["clips per batch (max_tokens_per_batch, or train_batch_size of a data set)"]

    def _step_changes(self, then: StreamIdentity) -> list[str]:
        return [
            f"{name} ({before} then, {today} now)"
            for name, before, today in (
                ("accumulation", then.accumulation, self.accumulation),
                ("processes", then.processes, self.processes),
            )
            if before != today
        ]


def identify(samples: Sequence[Sample], rules: BatchRules, table: DrawTable, seed: int) -> StreamIdentity:
    """The identity of the stream that draws `samples` by `rules`.

    Args:
        samples: What is trained.
        rules: How draws become batches.
        table: What `tabulate` makes of both.
        seed: Seed of the run.
    """
    capacity = table.capacity.tobytes() + table.groups.tobytes()
    weights = table.weights / table.weights.max()
    mixing = weights.tobytes() + bytes([table.by_set])
    # With `by_set` the draws of a data set arrive the sooner the larger its batches are.
    arrives = (table.capacity / table.capacity.max()).tobytes() if table.by_set and len(weights) > 1 else b""
    spans = [rules.of(dataset).span for dataset in dict.fromkeys(sample.dataset for sample in samples)]
    takes_part = repr(spans).encode() if any(span != ALWAYS for span in spans) else b""
    return StreamIdentity(
        seed=seed,
        dataset=_digest(samples),
        mixing=_number_of(mixing + arrives + takes_part),
        batch_size=rules.batch_size,
        capacity=_number_of(capacity),
        groups=len(table.capacity),
        accumulation=rules.accumulation,
        processes=rules.processes,
    )


def _digest(samples: Sequence[Sample]) -> int:
    """A number that changes with anything that the order and the draws depend on.

    The words of a caption are not among it: a mended caption does not stop a run.
    """
    digest = hashlib.blake2b(digest_size=8)
    for sample in samples:
        crop, frames = sample.crop, sample.frames
        facts = (
            sample.dataset, sample.path, frames.num_frames, frames.frame_rate, frames.start_seconds,
            crop.scaled_width, crop.scaled_height, crop.top, crop.left, crop.width, crop.height,
            len(sample.captions), sample.repeats,
        )  # fmt: skip
        digest.update(repr(facts).encode("utf-8"))
    return int.from_bytes(digest.digest(), "big") >> 1


def _number_of(content: bytes) -> int:
    """A 63-bit number for `content`."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1
