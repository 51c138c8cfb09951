"""What the batch stream does with what it reads: kinds and shapes of tensors, its thread, the time it waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from simpletuner.data.batch_rules import BatchRules
from simpletuner.data.batches import BatchStream
from simpletuner.data.sample import Sample

Planned = Callable[..., Sample]


def read_latents(sample: Sample) -> Tensor:
    return torch.full((2, 2, 2, 2), float(sample.path))


def read_prompt(text: str) -> tuple[Tensor, Tensor]:
    return torch.full((4, 3), float(len(text)), dtype=torch.bfloat16), torch.ones(4, dtype=torch.bool)


def test_the_thread_stays_within_its_bound_and_ends(planned: Planned) -> None:
    samples = [planned(str(number)) for number in range(50)]
    read = []
    enough = threading.Event()

    def count(sample: Sample) -> Tensor:
        read.append(sample.path)
        if len(read) >= 4:
            enough.set()
        return read_latents(sample)

    others = set(threading.enumerate())  # of tests before
    batches = BatchStream(samples, count, read_prompt, BatchRules(), seed=1, caption_dropout=0, prefetch=2)
    assert not read  # nothing happens before the first batch is asked for
    next(batches)
    assert enough.wait(5)
    assert len(read) <= 1 + 2 + 1  # handed out, waiting in the queue, in the thread's hand
    batches.close()
    assert not [thread for thread in set(threading.enumerate()) - others if thread.name == "batches"]
    assert batches.state_dict()["drawn"] == 1
    next(batches)  # goes on where it was
    assert batches.state_dict()["drawn"] == 2
    batches.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_latents_keep_their_kind(planned: Planned, dtype: torch.dtype) -> None:
    samples = [planned(str(number)) for number in range(4)]
    batches = BatchStream(samples, lambda sample: read_latents(sample).to(dtype), read_prompt, BatchRules(4),
                          seed=1, caption_dropout=0, prefetch=0)  # fmt: skip
    batch = next(batches)
    assert batch.latents.dtype == dtype
    assert sorted(batch.latents[:, 0, 0, 0, 0].tolist()) == [0, 1, 2, 3]


def test_misfitting_latents_name_their_clip(planned: Planned) -> None:
    samples = [planned("0"), planned("1")]
    batches = BatchStream(samples, lambda s: torch.zeros(2, 1, 2, 2 + (s.path == "1")), read_prompt, BatchRules(2),
                          seed=1, caption_dropout=0, prefetch=0)  # fmt: skip
    with pytest.raises(ValueError, match=r"test/[01] have the shape \[2, 1, 2, \d\], those of test/[01]"):
        next(batches)


@pytest.mark.parametrize("prefetch", [0, 3])
def test_waiting_is_measured(planned: Planned, prefetch: int) -> None:
    """A reader that takes 5 ms per batch keeps a caller waiting who does nothing else, and none who takes longer."""
    samples = [planned(str(number)) for number in range(6)]

    def read(sample: Sample) -> Tensor:
        time.sleep(0.005)
        return read_latents(sample)

    batches = BatchStream(samples, read, read_prompt, BatchRules(), seed=1, caption_dropout=0, prefetch=prefetch)
    next(batches)
    assert batches.waited_seconds == 0  # nothing could have prepared the first batch
    for _ in range(10):
        next(batches)
    hurried = batches.waited_seconds
    assert hurried > 0.02
    if prefetch:
        for _ in range(5):
            time.sleep(0.03)
            next(batches)
        assert batches.waited_seconds - hurried < 0.01
    batches.close()
    assert batches.waited_seconds >= hurried
