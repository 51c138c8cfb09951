"""An endless, resumable stream of batches over encoded samples.

The order of an epoch and everything drawn for a sample are functions of the seed and of running
numbers, so the position is three integers and a resumed stream equals an undisturbed one. Latents
and captions come from two functions; nothing here knows how they were encoded. Next stop:
`objectives/`.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simpletuner.core.errors import UserError
from simpletuner.data.batch import Batch
from simpletuner.data.sample import BucketKey, Sample
from simpletuner.runtime.random import draw_uniform, stream_generator

ReadLatents = Callable[[Sample], Tensor]
ReadPrompt = Callable[[str], tuple[Tensor, Tensor]]
Positions = NDArray[np.int64]

WAIT_SECONDS = 0.2  # how soon a waiting loader thread notices that it should end


@dataclass(frozen=True)
class BatchPlan:
    """One batch before anything is read.

    Attributes:
        positions: Places of its draws in the epoch's order.
        share: Part of the step's draws that this batch holds.
        ends_step: Whether it is the last of its step.
    """

    positions: Positions
    share: float
    ends_step: bool


def order_epoch(draws: int, seed: int, epoch: int) -> Positions:
    """A permutation of `draws` draws for `epoch` (from 1), the same on every machine."""
    return torch.randperm(draws, generator=stream_generator(seed, "epoch-order", epoch)).numpy()


def plan_batches(buckets: NDArray[np.int64], batch_size: int, accumulation: int) -> list[BatchPlan]:
    """Cut an epoch's draws into batches of one bucket, and batches into steps.

    Within a bucket draws keep their order, and batches stand where their first draw stands: buckets
    mix as the draws do, and with one bucket a step of 2 batches of 2 trains what one batch of 4 does.
    The last batch of a bucket and the last step of the epoch may be smaller; no draw is lost or
    repeated.

    Args:
        buckets: [N] number of the bucket of each draw, in the epoch's order.
        batch_size: Draws per batch.
        accumulation: Batches per optimizer step.
    """
    batches: list[Positions] = []
    for bucket in np.unique(buckets):
        places = np.flatnonzero(buckets == bucket)
        batches += [places[start : start + batch_size] for start in range(0, len(places), batch_size)]
    batches.sort(key=lambda places: int(places[0]))
    plans: list[BatchPlan] = []
    for start in range(0, len(batches), accumulation):
        step = batches[start : start + accumulation]
        draws = sum(len(places) for places in step)
        plans += [BatchPlan(places, len(places) / draws, places is step[-1]) for places in step]
    return plans


@dataclass(frozen=True)
class _Failure:
    """What the loader thread could not do; raised where the batch was asked for."""

    error: BaseException


class BatchStream:
    """Endless iterator of `Batch`; epochs follow each other without a pause."""

    def __init__(
        self,
        samples: Sequence[Sample],
        read_latents: ReadLatents,
        read_prompt: ReadPrompt,
        *,
        batch_size: int,
        accumulation: int,
        seed: int,
        caption_dropout: float,
        prefetch: int = 2,
    ) -> None:
        """Prepare a stream; nothing is read before the first batch is asked for.

        Args:
            samples: What is trained; each is drawn `repeats` times per epoch.
            read_latents: Sample -> latents [C, F, H, W].
            read_prompt: Caption -> features [L, D] and mask [L]; "" gives the empty prompt.
            batch_size: Draws per batch.
            accumulation: Batches per optimizer step.
            seed: Seed of the order and of the captions.
            caption_dropout: Chance in [0, 1] that a draw uses the empty prompt.
            prefetch: Batches prepared ahead in a thread; 0 prepares each when it is asked for.
        """
        if not samples or batch_size < 1 or accumulation < 1:
            raise ValueError("a stream needs samples, and at least 1 draw per batch and 1 batch per step")
        self._samples = tuple(samples)
        self._read_latents = read_latents
        self._read_prompt = read_prompt
        self._batch_size = batch_size
        self._accumulation = accumulation
        self._seed = seed
        self._caption_dropout = caption_dropout
        self._prefetch = prefetch
        self._pins_memory = torch.cuda.is_available()
        self._digest = _digest(self._samples)
        self._draws = np.repeat(np.arange(len(samples)), [sample.repeats for sample in samples])
        self._bucket_numbers = _number_buckets(self._samples)
        self._steps_per_epoch, self._batches_per_epoch = self._count()
        self._epoch, self._batch = 1, 0  # the next batch to hand out
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._ready: queue.Queue[Batch | _Failure] = queue.Queue()
        self._source: Iterator[Batch] | None = None

    @property
    def samples_per_epoch(self) -> int:
        """Draws of one epoch."""
        return len(self._draws)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch."""
        return self._steps_per_epoch

    @property
    def batches_per_epoch(self) -> int:
        """Forward passes of one epoch."""
        return self._batches_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch; an error while reading it is raised here."""
        batch = self._take() if self._prefetch > 0 else self._make()
        self._batch += 1
        if self._batch == self._batches_per_epoch:
            self._epoch, self._batch = self._epoch + 1, 0
        return batch

    def state_dict(self) -> dict[str, int]:
        """Position after the batches handed out so far, and what the order depends on."""
        return {"epoch": self._epoch, "batch": self._batch, **self._identity()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where `state` was taken.

        Raises:
            UserError: If samples, batch size, accumulation or seed differ: the order would be another.
        """
        mine = self._identity()
        changed = [name for name, value in mine.items() if state[name] != value]
        if changed:
            told = {"dataset": "the data set (files, sizes, frames, number of captions or repeats)"}
            listed = ", ".join(told.get(name, f"{name} ({state[name]} then, {mine[name]} now)") for name in changed)
            raise UserError(
                f"the run cannot continue in its data: changed since the checkpoint: {listed}",
                "A resumed run trains each sample exactly when the undisturbed run would have",
                "Restore what changed, or start a new run in another output_dir",
            )
        self.close()
        self._epoch, self._batch = state["epoch"], state["batch"]

    def close(self) -> None:
        """End the loader thread and drop what it prepared; the position stays."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._source = None

    def _identity(self) -> dict[str, int]:
        return {
            "batch_size": self._batch_size,
            "accumulation": self._accumulation,
            "seed": self._seed,
            "dataset": self._digest,
        }

    # Order --------------------------------------------------------------------------------------

    def _count(self) -> tuple[int, int]:
        plans = plan_batches(self._bucket_numbers[self._draws], self._batch_size, self._accumulation)
        return sum(plan.ends_step for plan in plans), len(plans)

    def _generate(self, epoch: int, first: int) -> Iterator[Batch]:
        """All batches from batch `first` of `epoch` on, without end."""
        while True:
            order = self._draws[order_epoch(len(self._draws), self._seed, epoch)]
            plans = plan_batches(self._bucket_numbers[order], self._batch_size, self._accumulation)
            for plan in plans[first:]:
                yield self._read(plan, order, epoch)
            epoch, first = epoch + 1, 0

    # Reading ------------------------------------------------------------------------------------

    def _read(self, plan: BatchPlan, order: Positions, epoch: int) -> Batch:
        samples = [self._samples[order[place]] for place in plan.positions]
        # The number counts draws, not batches: another batch size changes neither noise nor captions.
        numbers = [(epoch - 1) * len(order) + int(place) for place in plan.positions]
        captions = tuple(self._draw_caption(sample, number) for sample, number in zip(samples, numbers, strict=True))
        embeds, masks = zip(*(self._read_prompt(caption) for caption in captions), strict=True)
        batch = Batch(
            latents=_stack([self._read_latents(sample) for sample in samples]),
            prompt_embeds=_stack(embeds),
            prompt_mask=_stack(masks),
            frame_rates=torch.tensor([sample.frames.frame_rate for sample in samples], dtype=torch.float32),
            bucket=samples[0].bucket,
            sample_numbers=tuple(numbers),
            sample_names=tuple(sample.name for sample in samples),
            captions=captions,
            share=plan.share,
            ends_step=plan.ends_step,
            epoch=epoch,
        )
        return _pin(batch) if self._pins_memory else batch

    def _draw_caption(self, sample: Sample, number: int) -> str:
        if self._caption_dropout > 0 and self._draw("caption-dropout", number) < self._caption_dropout:
            return ""
        if len(sample.captions) == 1:
            return sample.captions[0]
        return sample.captions[int(self._draw("caption-choice", number) * len(sample.captions))]

    def _draw(self, stream: str, number: int) -> float:
        return draw_uniform(self._seed, stream, [number]).item()

    # Prefetching --------------------------------------------------------------------------------

    def _make(self) -> Batch:
        if self._source is None:
            self._source = self._generate(self._epoch, self._batch)
        try:
            return next(self._source)
        except BaseException:
            self._source = None  # a generator that raised is spent; the next call starts at the same batch
            raise

    def _take(self) -> Batch:
        if self._thread is None:
            self._stop = threading.Event()
            self._ready = queue.Queue(maxsize=self._prefetch)
            source = self._generate(self._epoch, self._batch)
            self._thread = threading.Thread(
                target=_fill_queue, args=(source, self._ready, self._stop), name="batches", daemon=True
            )
            self._thread.start()
        batch = self._ready.get()
        if isinstance(batch, _Failure):
            self.close()
            raise batch.error
        return batch


def _fill_queue(source: Iterator[Batch], ready: queue.Queue[Batch | _Failure], stop: threading.Event) -> None:
    item: Batch | _Failure
    while not stop.is_set():
        try:
            item = next(source)
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
            item = _Failure(error)
        while not stop.is_set():
            try:
                ready.put(item, timeout=WAIT_SECONDS)
                break
            except queue.Full:
                continue
        if isinstance(item, _Failure):
            return


def _number_buckets(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """[samples] number of each sample's bucket, numbered in the buckets' own order."""
    numbers: dict[BucketKey, int] = {key: number for number, key in enumerate(sorted({s.bucket for s in samples}))}
    return np.array([numbers[sample.bucket] for sample in samples], dtype=np.int64)


def _digest(samples: Sequence[Sample]) -> int:
    """A 63-bit number that changes with anything that the order and the draws depend on.

    The words of a caption are not among it: a mended caption does not stop a run.
    """
    digest = hashlib.blake2b(digest_size=8)
    for sample in samples:
        facts = (sample.name, str(sample.bucket), sample.frames, sample.crop, len(sample.captions), sample.repeats)
        digest.update(repr(facts).encode("utf-8"))
    return int.from_bytes(digest.digest(), "big") >> 1


def _stack(rows: Sequence[Tensor]) -> Tensor:
    """Join tensors of one shape along a new first axis.

    NumPy copies in this thread alone. `torch.stack` would give the loader thread an OpenMP team of its
    own, which competes with the model for the cores.
    """
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
        frame_rates=batch.frame_rates.pin_memory(),
    )
