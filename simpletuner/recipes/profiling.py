"""Where the time of a step goes: some real steps of a configuration, some of them under PyTorch's profiler.

The steps are those of training: the same caches, model and batches (`beginning.py`), the same loop (`fit_on`). No
checkpoint is read or written, and what was trained is dropped.
"""

from __future__ import annotations

import gzip
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import torch

from simpletuner.config.run_config import RunConfig
from simpletuner.core.files import ensure_writable, staged_file, write_atomic
from simpletuner.data.batch import Batch
from simpletuner.data.batches import BatchStream
from simpletuner.events.types import Event, MemoryMeasured, Noticed, StepFinished, StepSkipped
from simpletuner.recipes.beginning import Beginning, begin_training
from simpletuner.recipes.cache import open_cache_plan
from simpletuner.recipes.encode import fill_caches
from simpletuner.recipes.profile_page import BLOCK, StepProfile, write_page
from simpletuner.recipes.survey import check_sizes
from simpletuner.recipes.train import refuse_kernels
from simpletuner.runtime.host import allow_tf32, find_host
from simpletuner.runtime.lock import hold_folder
from simpletuner.runtime.regions import STEP, named_modules, region
from simpletuner.runtime.trace_reading import read_trace
from simpletuner.training.build import Trainable
from simpletuner.training.fit import fit_on

FOLDER: Final = "profile"  # in the run's output_dir
TRACE: Final = "trace.json.gz"
PAGE: Final = "summary.txt"
WARM_UP_STEPS: Final = 2  # they compile, fill allocators, and make the optimizer's states
FIRST_TRACED: Final = 1  # the profiler itself warms up


def profile_run(config: RunConfig, steps: int, emit: Callable[[Event], None]) -> tuple[StepProfile, str]:
    """Take `steps` steps for their pace and as many for their trace; leaves both files in the folder `profile`.

    Returns:
        What was found, and the page that tells it.

    Raises:
        UserError: With every problem found, as in training.
    """
    folder = Path(config.checkpoint.output_dir) / FOLDER
    host = find_host()
    allow_tf32(not config.precision.disable_tf32)
    refuse_kernels(config, host)
    ensure_writable(folder, "output_dir")
    with hold_folder(folder):
        config, plan = open_cache_plan(config, emit, writes=True)
        caches = fill_caches(config, plan, host, emit)
        samples = check_sizes(tuple(sample for sample in plan.samples if caches[0].holds(sample)), config)
        measured: list[MemoryMeasured] = []

        def listen(event: Event) -> None:
            if isinstance(event, MemoryMeasured):
                measured.append(event)
            emit(event)

        begun = begin_training(config, plan, caches, samples, host, folder, listen)
        try:
            found = _profile(begun, steps, host.device_name, measured[0] if measured else None, folder, emit)
        finally:
            begun.batches.close()
            begun.trainable.close()
        page = write_page(found)
        write_atomic(folder / PAGE, page)
    return found, page


def _profile(
    begun: Beginning, steps: int, device: str, memory: MemoryMeasured | None, folder: Path,
    emit: Callable[[Event], None],
) -> StepProfile:  # fmt: skip
    state, seen = begun.state, _Seen(begun.batches)
    wanted = WARM_UP_STEPS + FIRST_TRACED + 2 * steps
    state.total_steps = max(state.total_steps, wanted)
    state.batches = seen

    def warn(text: str) -> None:
        emit(Noticed("warning", text))

    # As in training: the numbers of a step may arrive while the next one computes.
    running = fit_on(
        state, begun.objective, stop=lambda: state.step >= wanted, settles=lambda step: step == wanted, tell=warn
    )
    _take(running, WARM_UP_STEPS, emit)
    waited = begun.batches.waited_seconds
    plain = _take(running, steps, emit)
    waited = begun.batches.waited_seconds - waited
    with _profiler(begun.trainable):
        _take(running, FIRST_TRACED, emit)
    seen.shapes.clear()
    with _naming(begun.trainable), _profiler(begun.trainable) as profiler:
        traced = _take(running, steps, emit)
    _write_trace(profiler, folder / TRACE)
    reading = read_trace(profiler.events())
    return StepProfile(device, plain, waited, traced, tuple(seen.shapes), reading, memory, folder / TRACE)


def _take(
    running: Iterator[StepFinished | StepSkipped], count: int, emit: Callable[[Event], None]
) -> tuple[StepFinished, ...]:
    """The next steps of a loop; one that was passed over counts, but not for its pace."""
    taken = []
    for _ in range(count):
        with region(STEP):
            event = next(running, None)
        if isinstance(event, StepFinished):
            taken.append(event)
        elif event is not None:
            emit(event)
    return tuple(taken)


def _profiler(trainable: Trainable) -> Any:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if trainable.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    return torch.profiler.profile(activities=activities)


def _write_trace(profiler: Any, path: Path) -> None:
    """The time line, packed; the profiler's own packing goes line by line and takes several times as long."""
    with tempfile.TemporaryDirectory() as scratch, staged_file(path) as staging:
        profiler.export_chrome_trace(f"{scratch}/trace.json")
        with Path(scratch, "trace.json").open("rb") as plain, gzip.open(staging, "wb", compresslevel=5) as packed:
            shutil.copyfileobj(plain, packed)


def _naming(trainable: Trainable) -> AbstractContextManager[None]:
    """Names for the model's parts; within compiled blocks there are none, because graphs are one piece."""
    block_list = trainable.family.block_list
    blocks = trainable.transformer.get_submodule(block_list)
    named = [(name, child) for name, child in trainable.transformer.named_children() if name != block_list]
    for number, block in blocks.named_children():
        named.append((f"{BLOCK}{number}", block))
        if trainable.compilation is None:
            # What holds no weights is small, and the names themselves take time.
            named += [(name, part) for name, part in block.named_children() if any(True for _ in part.parameters())]
    return named_modules(named)


class _Seen:
    """Fulfils `BatchSource`: the batches of a run, their shapes noted."""

    def __init__(self, batches: BatchStream) -> None:
        self.shapes: list[str] = []
        self._batches = batches

    def __next__(self) -> Batch:
        batch = next(self._batches)
        clips = len(batch.sample_numbers)
        self.shapes.append(f"{clips} clip{'s' if clips > 1 else ''} of {batch.bucket}")
        return batch

    def state_dict(self) -> dict[str, int]:
        return self._batches.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> tuple[str, ...]:
        return self._batches.load_state_dict(state)
