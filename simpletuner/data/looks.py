"""Looks at every sample once, in threads, and remembers what was seen in the index of its data set.

Joins `decode.py` and `index.py` to the measures of `quality.py`; torch is not needed. A sample whose frames cannot be
decoded gives its reason instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from simpletuner.config.dataset import ClipDataset
from simpletuner.data.decode import decode_frames
from simpletuner.data.index import FileIndex, open_index
from simpletuner.data.quality import LOOK_RECIPE, Look, find_near_duplicates, look_at, look_indices, look_of_record
from simpletuner.data.quarantine import stored_file
from simpletuner.data.sample import DamagedMedia, LeftOut, Sample, Unfit
from simpletuner.data.scan import in_threads
from simpletuner.data.storage import Storage
from simpletuner.events.types import Event, StageAdvanced, StageFinished, StageStarted

STAGE = "looks"
FACT = f"looks-{LOOK_RECIPE}"
LOOK_EVENTS = 200
SAVED_AT_ONCE = 64  # files; each took the decoding of a window


@dataclass(frozen=True)
class Looks:
    """What was seen.

    Attributes:
        by_name: `Sample.name` -> its look.
        failed: Samples whose frames cannot be decoded, with the reason.
    """

    by_name: Mapping[str, Look] = field(default_factory=dict)
    failed: tuple[LeftOut, ...] = ()

    def near_duplicates(
        self, samples: Sequence[Sample], storages: Mapping[str, Storage]
    ) -> tuple[tuple[Sample, ...], ...]:
        """Groups of samples from different files that show the same, in the order of `samples`."""
        seen = [sample for sample in samples if sample.name in self.by_name]
        sources = [f"{storages[sample.dataset].place}/{sample.path}" for sample in seen]
        groups = find_near_duplicates([self.by_name[sample.name] for sample in seen], sources)
        return tuple(tuple(seen[place] for place in group) for group in groups)


def enlargement(sample: Sample) -> float:
    """How many times larger than in the source the sample is shown, along the axis that grows most; 1 is equal."""
    return max(sample.crop.scaled_width / sample.info.width, sample.crop.scaled_height / sample.info.height)


def take_looks(
    samples: Sequence[Sample],
    datasets: Iterable[ClipDataset],
    storages: Mapping[str, Storage],
    *,
    workers: int,
    emit: Callable[[Event], None],
) -> Looks:
    """Look at all `samples`; what the index remembers of a file that has not changed is not decoded again.

    Args:
        samples: What is trained.
        datasets: Their entries.
        storages: Where the files of each data set lie, by its id.
        workers: Threads that decode.
        emit: Receives the progress events of the stage "looks".
    """
    started = time.monotonic()
    found: dict[str, Look] = {}
    failed: list[LeftOut] = []
    emit(StageStarted(STAGE, "Looking at clips", len(samples), "clips"))
    done = remembered = 0
    stride = max(1, len(samples) // LOOK_EVENTS)
    for dataset in datasets:
        own: dict[str, list[Sample]] = {}
        for sample in samples:
            if sample.dataset == dataset.id:
                own.setdefault(sample.path, []).append(sample)
        with open_index(dataset) as index:
            shelf = _Shelf(index, own)
            remembered += len(shelf.found)
            done += len(shelf.found)
            for sample, result in in_threads(lambda item: _look(storages[item.dataset], item), shelf.unseen, workers):
                if isinstance(result, LeftOut):
                    failed.append(result)
                else:
                    shelf.take(sample, result)
                done += 1
                if done % stride == 0:
                    emit(StageAdvanced(STAGE, done, detail=sample.name))
            shelf.save()
            found |= shelf.found
    summary = [f"{remembered} remembered"] * bool(remembered) + [f"{len(failed)} cannot be decoded"] * bool(failed)
    emit(StageFinished(STAGE, done, time.monotonic() - started, ", ".join(summary)))
    return Looks(found, tuple(failed))


class _Shelf:
    """The looks of one data set: those remembered, and those to be remembered."""

    def __init__(self, index: FileIndex, samples: Mapping[str, list[Sample]]) -> None:
        self._index = index
        self._samples = samples
        self._waiting: dict[str, dict[str, Look]] = {}
        self._done: list[str] = []
        self.found: dict[str, Look] = {}
        self.unseen: list[Sample] = []
        stored = index.read_facts(FACT, {path: stored_file(windows[0]) for path, windows in samples.items()})
        for path, windows in samples.items():
            self._recall(windows, stored.get(path) or {})

    def _recall(self, windows: Sequence[Sample], records: Mapping[str, Any]) -> None:
        for sample in windows:
            record = records.get(_window(sample))
            look = look_of_record(record) if record else None
            if look is None:
                self.unseen.append(sample)
            else:
                self.found[sample.name] = look

    def take(self, sample: Sample, look: Look) -> None:
        """Note a look; a file is written down when all its windows have been seen."""
        self.found[sample.name] = look
        windows = self._samples[sample.path]
        if all(window.name in self.found for window in windows):
            self._done.append(sample.path)
        if len(self._done) >= SAVED_AT_ONCE:
            self.save()

    def save(self) -> None:
        """Write down what has gathered."""
        done, self._done = self._done, []
        facts = []
        for path in done:
            windows = self._samples[path]
            records = {_window(window): self.found[window.name].as_record() for window in windows}
            facts.append((stored_file(windows[0]), records))
        self._index.write_facts(FACT, facts)


def _window(sample: Sample) -> str:
    """Everything that decides which pixels are looked at."""
    plan, crop = sample.frames, sample.crop
    frames = f"{plan.num_frames}@{plan.frame_rate:.6g}+{plan.start_seconds:.6f}"
    place = f"{crop.scaled_width}x{crop.scaled_height}+{crop.left}+{crop.top}"
    return f"{frames} {crop.width}x{crop.height} of {place}"


def _look(storage: Storage, sample: Sample) -> Look | LeftOut:
    count = sample.frames.num_frames
    try:
        return look_at(decode_frames(storage, sample, look_indices(count)), count, enlargement(sample))
    except Unfit as unfit:
        return LeftOut(sample.dataset, sample.path, unfit.reason, damaged=isinstance(unfit, DamagedMedia))
    except OSError as error:
        return LeftOut(sample.dataset, sample.path, f"the file could not be read ({error.strerror or error})")
