"""An endless, resumable stream of batches over encoded samples, one of as many as there are processes.

The order of an epoch and everything drawn for a sample are functions of the seed and of running
numbers (`order.py`), so the position is a few integers and a resumed stream equals an undisturbed one.
Latents and captions come from two functions; nothing here knows how they were encoded. Next stop:
`objectives/`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from simpletuner.core.errors import ExitCode, UserError
from simpletuner.data.batch import Batch
from simpletuner.data.batch_rules import BatchRules, group_samples
from simpletuner.data.draw_table import restrict, tabulate
from simpletuner.data.epochs import Epochs, EpochStart
from simpletuner.data.geometry import at_epoch
from simpletuner.data.order import BatchPlan, Cut, DrawTable, Places, cut_batches, order_epoch, plan_steps
from simpletuner.data.position import Position, identify
from simpletuner.data.prefetch import Prefetcher
from simpletuner.data.sample import BucketKey, Sample
from simpletuner.runtime.random import draw_uniform

ReadLatents = Callable[[Sample], Tensor]
ReadPrompt = Callable[[str], tuple[Tensor, Tensor]]
# Shape of a clip's latents, running numbers of the draws -> noise [B, *shape] float32 on the CPU.
DrawNoise = Callable[[Sequence[int], Sequence[int]], Tensor]

PREFETCH_BYTES = 1 << 30  # batches waiting in memory; one may exceed it


@dataclass(frozen=True)
class _Prepared:
    """A batch, and where the stream stands once it is handed out."""

    batch: Batch
    after: Position


class BatchStream:
    """Endless iterator of `Batch`; epochs follow each other without a pause.

    Attributes:
        epochs: How long each epoch is, and which data sets take part in it.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        read_latents: ReadLatents,
        read_prompt: ReadPrompt,
        rules: BatchRules,
        *,
        seed: int,
        caption_dropout: float,
        prefetch: int = 2,
        read_features: ReadLatents | None = None,
        draw_noise: DrawNoise | None = None,
        process_index: int = 0,
    ) -> None:
        """Prepare a stream; nothing is read before the first batch is asked for.

        Args:
            samples: What is trained, the same in every process; each is drawn `repeats` times per epoch.
            read_latents: Sample -> latents [C, F, H, W].
            read_prompt: Caption -> features [L, D] and mask [L]; "" gives the empty prompt.
            rules: How draws become batches, and over how many processes they are dealt out.
            seed: Seed of the order and of the captions.
            caption_dropout: Chance in [0, 1] that a draw uses the empty prompt.
            prefetch: Batches prepared ahead in a thread at most; 0 prepares each when it is asked for.
            read_features: Sample -> a teacher's features [F, h, w, E]; None where no objective asks for them.
            draw_noise: Draws the noise of a batch, beside training where batches are prepared ahead; None where the
                objective draws it.
            process_index: Which of the processes this one is, from 0.
        """
        if not samples or min(rules.batch_size, rules.accumulation, rules.processes) < 1:
            raise ValueError("a stream needs samples, and at least 1 draw per batch and 1 batch per step")
        if not 0 <= process_index < rules.processes:
            raise ValueError(f"process {process_index} is not one of {rules.processes}")
        self._samples = tuple(samples)
        self._read_latents = read_latents
        self._read_prompt = read_prompt
        self._read_features = read_features
        self._draw_noise = draw_noise
        self._rules = rules
        self._seed = seed
        self._caption_dropout = caption_dropout
        self._prefetch = prefetch
        self._process_index = process_index
        self._pins_memory = torch.cuda.is_available()
        self._table = tabulate(self._samples, rules)
        self._identity = identify(self._samples, rules, self._table, seed)
        self.epochs = Epochs(self._samples, rules)
        self._position = Position(1, 0, 0)  # of the next batch to hand out
        self._ahead: Prefetcher[_Prepared] | None = None
        self._source: Iterator[_Prepared] | None = None
        self._waited_seconds = 0.0

    @property
    def samples_per_epoch(self) -> int:
        """Draws of the epoch under way, over all processes."""
        return self._start.size.draws

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of the epoch under way."""
        return self._start.size.steps

    @property
    def batches_per_epoch(self) -> int:
        """Forward passes of the epoch under way in this process, as many as in every other."""
        return self._start.size.micro_steps

    @property
    def _start(self) -> EpochStart:
        return self.epochs.at(self._position.epoch, self._position.first_step)

    @property
    def epochs_done(self) -> Fraction:
        """Passes over the data that finished steps have made, over all processes; whole at the end of an epoch."""
        done, drawn = self._position.epoch - 1, self._position.drawn
        return done + Fraction(drawn, self._start.size.draws) if drawn else Fraction(done)

    @property
    def waited_seconds(self) -> float:
        """How long `next` has kept its caller waiting; the first batch after a start, which nothing could prepare
        ahead, is left out."""
        return self._waited_seconds + (self._ahead.waited_seconds if self._ahead else 0.0)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch; an error while reading it is raised here, and the position stays.

        Raises:
            UserError: If latents or text of a sample cannot be read, naming its file.
        """
        prepared = self._take() if self._prefetch > 0 else self._make()
        self._position = prepared.after
        return prepared.batch

    def read_largest(self) -> Batch:
        """A full batch of the size with the most latent cells; position and draws stay as they are.

        Raises:
            UserError: As for the next batch.
        """
        groups = group_samples(self._samples, self._rules)
        largest = max(groups, key=lambda group: group.capacity * self._size_of(group.bucket))
        samples = [largest.members[number % len(largest.members)] for number in range(largest.capacity)]
        return self._collate(samples, range(len(samples)), 1.0, ends_step=True, epoch=self._position.epoch)

    def _size_of(self, bucket: BucketKey) -> int:
        """Latent cells of a clip, or its pixels where no grid is known."""
        if self._rules.grid is not None:
            return self._rules.tokens(bucket)
        return bucket.width * bucket.height * bucket.num_frames

    def state_dict(self) -> dict[str, int]:
        """Position after the batches handed out so far, and what the order depends on; equal in all processes."""
        return {**self._position.as_numbers(), **self._identity.as_numbers()}

    def load_state_dict(self, state: Mapping[str, int]) -> tuple[str, ...]:
        """Continue where `state` was taken.

        The number of processes and the accumulation may have changed between two steps: the draws that are left
        are dealt out anew. Clips per batch may have changed where one bucket holds everything, or at the end of an
        epoch; elsewhere it is not known which draws are left.

        Returns:
            One sentence for each change, telling what carries over.
        Raises:
            UserError: If samples, seed or mixing differ, or batches in a way that loses or repeats draws.
        """
        position, told = self._identity.continue_from(state)
        self.close()
        self._position = position
        return told

    def skip_to(self, step: int) -> None:
        """Stand where a run with these samples and batches stands after `step` optimizer steps.

        Raises:
            UserError: If no data set takes part in one of the epochs before.
        """
        start = next(start for start in self.epochs.walk() if step < start.step + start.size.steps)
        table = restrict(self._table, [self.epochs.datasets.index(name) for name in start.datasets])
        cut = cut_batches(table.groups[order_epoch(table, self._seed, start.epoch)], table.capacity)
        first = (step - start.step) * self._rules.batches_per_step
        self.close()
        self._position = Position(start.epoch, int(cut.starts[first]), 0, step, start.step)

    def close(self) -> None:
        """End the loader thread and drop what it prepared; the position stays."""
        if self._ahead is not None:
            self._ahead.close()
            self._waited_seconds += self._ahead.waited_seconds
            self._ahead = None
        self._source = None

    # Order --------------------------------------------------------------------------------------

    def _generate(self, position: Position) -> Iterator[_Prepared]:
        """All batches from `position` on, without end."""
        while True:
            start = self.epochs.at(position.epoch, position.first_step)
            table = restrict(self._table, [self.epochs.datasets.index(name) for name in start.datasets])
            order = order_epoch(table, self._seed, position.epoch)
            cut = _cut(table, order, position.drawn)
            first = int(np.searchsorted(cut.starts, position.drawn))
            steps = plan_steps(cut, self._rules.accumulation, self._rules.processes, self._process_index, first)
            for step in steps:
                first = min(first + self._rules.batches_per_step, len(cut.starts) - 1)
                done = _end_of_step(position, int(cut.starts[first]), start.size.draws)
                for micro_step, plan in islice(enumerate(step, start=1), position.micro_steps, None):
                    after = done if plan.ends_step else replace(position, micro_steps=micro_step)
                    yield _Prepared(self._read(plan, table.samples[order], position.epoch), after)
                position = done

    # Reading ------------------------------------------------------------------------------------

    def _read(self, plan: BatchPlan, drawn: Places, epoch: int) -> Batch:
        """A batch of the epoch whose draws are the samples number `drawn`, in this order."""
        samples = [self._samples[drawn[place]] for place in plan.positions]
        # The number counts draws, not batches: another batch size changes neither noise nor captions. An epoch takes
        # as many numbers as all data sets have draws, also where some of them do not take part.
        numbers = [(epoch - 1) * len(self._table.samples) + int(place) for place in plan.positions]
        return self._collate(samples, numbers, plan.share, ends_step=plan.ends_step, epoch=epoch)

    def _collate(
        self, samples: Sequence[Sample], numbers: Sequence[int], share: float, *, ends_step: bool, epoch: int
    ) -> Batch:
        samples = [at_epoch(sample, epoch) for sample in samples]
        captions = tuple(self._draw_caption(sample, number) for sample, number in zip(samples, numbers, strict=True))
        prompts = [self._prompt_of(sample, caption) for sample, caption in zip(samples, captions, strict=True)]
        embeds, masks = zip(*prompts, strict=True)
        latents = _stack([self._latents_of(sample) for sample in samples], "latents", samples)
        batch = Batch(
            latents=latents,
            prompt_embeds=_stack(embeds, "encoded captions", samples),
            prompt_mask=_stack(masks, "caption masks", samples),
            frame_rates=torch.tensor([sample.frames.frame_rate for sample in samples], dtype=torch.float32),
            bucket=samples[0].bucket,
            sample_numbers=tuple(numbers),
            sample_names=tuple(sample.name for sample in samples),
            captions=captions,
            share=share,
            ends_step=ends_step,
            epoch=epoch,
            is_i2v=tuple(sample.is_i2v for sample in samples),
            is_prior=tuple(sample.is_prior for sample in samples),
            features=self._features_of(samples),
            noise=None if self._draw_noise is None else self._draw_noise(latents.shape[1:], numbers),
        )
        return _pin(batch) if self._pins_memory else batch

    def _latents_of(self, sample: Sample) -> Tensor:
        try:
            return self._read_latents(sample)
        except (OSError, EOFError) as error:
            _refuse_unreadable("latents", sample, error)

    def _features_of(self, samples: Sequence[Sample]) -> Tensor | None:
        if self._read_features is None:
            return None
        return _stack([self._read_features(sample) for sample in samples], "features", samples)

    def _prompt_of(self, sample: Sample, caption: str) -> tuple[Tensor, Tensor]:
        try:
            return self._read_prompt(caption)
        except (OSError, EOFError) as error:
            _refuse_unreadable("encoded caption", sample, error)

    def _draw_caption(self, sample: Sample, number: int) -> str:
        if self._caption_dropout > 0 and self._draw("caption-dropout", number) < self._caption_dropout:
            return ""
        if len(sample.captions) == 1:
            return sample.captions[0]
        return sample.captions[int(self._draw("caption-choice", number) * len(sample.captions))]

    def _draw(self, stream: str, number: int) -> float:
        return draw_uniform(self._seed, stream, [number]).item()

    # Prefetching --------------------------------------------------------------------------------

    def _make(self) -> _Prepared:
        started, is_first = time.perf_counter(), self._source is None
        if self._source is None:
            self._source = self._generate(self._position)
        try:
            prepared = next(self._source)
        except BaseException:
            self._source = None  # a generator that raised is spent; the next call starts at the same batch
            raise
        self._waited_seconds += 0.0 if is_first else time.perf_counter() - started
        return prepared

    def _take(self) -> _Prepared:
        if self._ahead is None:
            self._ahead = Prefetcher(
                self._generate(self._position),
                most=self._prefetch,
                most_bytes=PREFETCH_BYTES,
                size_of=lambda prepared: prepared.batch.size_bytes,
                name="batches",
            )
        try:
            return self._ahead.take()
        except BaseException:
            self.close()
            raise


def _cut(table: DrawTable, order: Places, drawn: int) -> Cut:
    """The batches of an epoch; after a change of the batch size those of what is left of its one group."""
    groups, capacity = table.groups[order], table.capacity
    cut = cut_batches(groups, capacity)
    if drawn in cut.starts:
        return cut
    rest = cut_batches(groups[drawn:], capacity)
    return Cut(np.concatenate([np.arange(drawn), rest.places + drawn]), np.concatenate([[0], rest.starts + drawn]))


def _end_of_step(position: Position, drawn: int, draws: int) -> Position:
    """Where the stream stands after a step that leaves `drawn` of the `draws` of its epoch done."""
    step = position.step + 1
    if drawn == draws:
        return Position(position.epoch + 1, 0, 0, step, step)
    return replace(position, drawn=drawn, micro_steps=0, step=step)


def _refuse_unreadable(what: str, sample: Sample, error: Exception) -> NoReturn:
    raise UserError(
        f"{sample.name}: its {what} cannot be read ({error})",
        "Every sample of a batch must be readable, or an epoch would not be complete",
        "Check the disk and the cache folder, then start the same command again: what is missing is encoded anew",
        exit_code=ExitCode.DISK,
    ) from error


def _stack(rows: Sequence[Tensor], what: str, samples: Sequence[Sample]) -> Tensor:
    """Join tensors of one shape along a new first axis.

    NumPy copies in this thread alone. `torch.stack` would give the loader thread an OpenMP team of its
    own, which competes with the model for the cores.
    """
    for row, sample in zip(rows, samples, strict=True):
        if row.shape != rows[0].shape:
            raise ValueError(
                f"{what} of {sample.name} have the shape {list(row.shape)}, those of {samples[0].name} "
                f"{list(rows[0].shape)}, in one batch of bucket {sample.bucket}"
            )
    if len(rows) == 1:
        return rows[0].unsqueeze(0)
    kind = rows[0].dtype
    if kind == torch.bfloat16:  # NumPy has no such type; the bits are copied as they are
        return torch.from_numpy(np.stack([row.view(torch.int16).numpy() for row in rows])).view(kind)
    return torch.from_numpy(np.stack([row.numpy() for row in rows]))


def _pin(batch: Batch) -> Batch:
    """The batch in page-locked memory, from where copies to the device overlap with its work."""
    return replace(
        batch,
        latents=batch.latents.pin_memory(),
        prompt_embeds=batch.prompt_embeds.pin_memory(),
        prompt_mask=batch.prompt_mask.pin_memory(),
        features=None if batch.features is None else batch.features.pin_memory(),
        noise=None if batch.noise is None else batch.noise.pin_memory(),
    )
