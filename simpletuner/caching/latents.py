"""Latents of every sample, encoded once and kept.

Only what is missing is encoded, and the autoencoder is loaded only if something is. Threads decode
clips ahead of the encoder within a memory budget; entries are written in order, each complete or
not at all, so a killed run loses nothing that was finished. A clip that cannot be decoded is left
out with its reason; the rest goes on. Batches read the result through `LatentCache.read`.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simpletuner.caching.fingerprint import latent_facts
from simpletuner.caching.store import (
    DamagedEntryError,
    Key,
    check_entries,
    lost_entry,
    read_entry,
    sweep_litter,
    write_entry,
)
from simpletuner.core.errors import UserError
from simpletuner.data.decode import decode_sample, frames_to_pixels
from simpletuner.data.sample import BucketKey, CropPlan, FramePlan, LeftOut, Sample, Unfit
from simpletuner.data.storage import Storage
from simpletuner.events.types import Event, Noticed, StageAdvanced, StageFinished, StageStarted
from simpletuner.models.family import Autoencoder

STAGE = "latents"
_AHEAD_BYTES = 1 << 30  # decoded frames waiting for the encoder; one batch may exceed it

_Place = tuple[str, FramePlan, CropPlan]


@dataclass(frozen=True)
class _Work:
    sample: Sample
    key: Key


@dataclass(frozen=True)
class _Outcome:
    shapes: Mapping[BucketKey, tuple[int, ...]]
    left_out: Mapping[_Place, LeftOut]
    encoded: int


class LatentCache:
    """The finished cache of one run.

    Attributes:
        left_out: Clips without latents, each with its reason; they must not be trained.
        encoded: Entries made in this start.
        reused: Entries that were there already.
        stale: Entries on the disk that nothing wants any more.
        shapes: Latent [C, F, H, W] per bucket.
    """

    def __init__(
        self,
        keys: Mapping[_Place, Key],
        outcome: _Outcome,
        *,
        reused: int,
        stale: int,
    ) -> None:
        self._keys = dict(keys)
        self.left_out = tuple(outcome.left_out.values())
        self.encoded = outcome.encoded
        self.reused = reused
        self.stale = stale
        self.shapes = dict(outcome.shapes)

    def holds(self, sample: Sample) -> bool:
        """Whether `sample` has latents."""
        return _place(sample) in self._keys

    def read(self, sample: Sample) -> Tensor:
        """Normalised latents [C, F, H, W] of `sample`, float32.

        The checksum was verified at the start; here only the key and the shape are compared.

        Raises:
            UserError: If the entry has been removed or changed since the start.
            KeyError: If `sample` was not cached; see `holds`.
        """
        key = self._keys[_place(sample)]
        try:
            return read_entry(key, verify=False)[0]["latents"]
        except (FileNotFoundError, DamagedEntryError) as error:
            raise lost_entry(key, error) from error


def cache_latents(
    samples: Sequence[Sample],
    storages: Mapping[str, Storage],
    folders: Mapping[str, Path],
    identity: str,
    load_autoencoder: Callable[[], Autoencoder],
    *,
    batch_size: int,
    workers: int,
    emit: Callable[[Event], None],
) -> LatentCache:
    """Encode what is missing and give access to all.

    Args:
        samples: What will be trained.
        storages: Where the files of each data set lie.
        folders: Cache folder of each data set; several may share one.
        identity: Autoencoder as it is run, see `fingerprint.encoder_identity`.
        load_autoencoder: Called at most once, only if something is missing; what it returns is
            dropped before this function returns.
        batch_size: Clips of equal shape encoded at once, at least 1.
        workers: Threads that decode and verify.
        emit: Receives progress and notices.

    Raises:
        UserError: If the disk is full or closed to writing (exit code 6; finished entries stay), or
            if one clip alone does not fit into memory.
    """
    started = time.monotonic()
    keys = {_place(s): Key.of(folders[s.dataset], s.path, latent_facts(s, identity)) for s in samples}
    work = {_place(s): _Work(s, keys[_place(s)]) for s in samples}
    cache_folders = [folders[dataset] for dataset in {s.dataset: None for s in samples}]
    sweep_litter(cache_folders)
    status = check_entries(list(keys.values()), cache_folders, "latents", workers=workers)
    for sentence in status.sentences:
        emit(Noticed("warning" if status.damaged and sentence == status.sentences[0] else "note", sentence))
    missing = [item for item in work.values() if item.key not in status.usable]
    reused = len(keys) - len(missing)
    emit(StageStarted(STAGE, "Encoding clips", total=len(keys), unit="clips", done=reused))
    outcome = _Outcome({}, {}, 0)
    if missing:
        outcome = _encode_missing(
            missing, storages, load_autoencoder, batch_size=batch_size, workers=workers, emit=emit, reused=reused
        )
        _release_memory()
    summary = f"{outcome.encoded} encoded, {reused} reused"
    if outcome.left_out:
        summary += f", {len(outcome.left_out)} left out"
    emit(StageFinished(STAGE, len(keys), time.monotonic() - started, summary))
    held = {place: item for place, item in work.items() if place not in outcome.left_out}
    shapes = _with_reused_shapes(outcome.shapes, held.values())
    return LatentCache(
        {place: item.key for place, item in held.items()},
        _Outcome(shapes, outcome.left_out, outcome.encoded),
        reused=reused,
        stale=status.stale,
    )


def _encode_missing(
    missing: Sequence[_Work],
    storages: Mapping[str, Storage],
    load_autoencoder: Callable[[], Autoencoder],
    *,
    batch_size: int,
    workers: int,
    emit: Callable[[Event], None],
    reused: int,
) -> _Outcome:
    left_out: dict[_Place, LeftOut] = {}
    shapes: dict[BucketKey, tuple[int, ...]] = {}
    done, encoded = reused, 0

    def leave_out(item: _Work, reason: str) -> None:
        left_out[_place(item.sample)] = LeftOut(item.sample.dataset, item.sample.path, reason)
        emit(Noticed("warning", f"{item.sample.name} is left out: {reason}"))

    ordered = sorted(missing, key=lambda item: item.sample.bucket)
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            clips = _decode_ahead(ordered, storages, pool, ahead=workers + batch_size)
            autoencoder = load_autoencoder()
            for group in _grouped(clips, batch_size):
                ready = [(item, result) for item, result in group if not isinstance(result, str)]
                for item, result in group:
                    if isinstance(result, str):
                        leave_out(item, result)
                for (item, _), latents in zip(ready, _encode(autoencoder, [f for _, f in ready]), strict=True):
                    if not bool(torch.isfinite(latents).all()):
                        leave_out(item, "its latents are not finite numbers (try vae_dtype=fp32)")
                        continue
                    write_entry(item.key, {"latents": latents})
                    shapes[item.sample.bucket] = tuple(latents.shape)
                    encoded += 1
                done += len(group)
                emit(StageAdvanced(STAGE, done, detail=group[-1][0].sample.name))
        finally:
            # Ctrl-C or a full disk must not wait for clips that nobody will encode.
            pool.shutdown(wait=False, cancel_futures=True)
    return _Outcome(shapes, left_out, encoded)


def _decode_ahead(
    work: Sequence[_Work], storages: Mapping[str, Storage], pool: ThreadPoolExecutor, *, ahead: int
) -> Iterator[tuple[_Work, np.ndarray | str]]:
    """Yield (work, frames or the reason why there are none) in order, decoding in the background."""
    waiting: deque[tuple[_Work, Future[np.ndarray | str]]] = deque()
    upcoming = iter(work)
    held_bytes = 0

    def top_up() -> None:
        nonlocal held_bytes
        while len(waiting) < ahead and (not waiting or held_bytes < _AHEAD_BYTES):
            item = next(upcoming, None)
            if item is None:
                return
            waiting.append((item, pool.submit(_decode, storages[item.sample.dataset], item.sample)))
            held_bytes += _frame_bytes(item.sample)

    top_up()
    while waiting:
        item, future = waiting.popleft()
        result = future.result()
        held_bytes -= _frame_bytes(item.sample)
        top_up()
        yield item, result


def _decode(storage: Storage, sample: Sample) -> np.ndarray | str:
    try:
        return decode_sample(storage, sample)
    except Unfit as error:
        return str(error)
    except OSError as error:
        return f"the file could not be read ({error.strerror or error})"


def _grouped(
    clips: Iterable[tuple[_Work, np.ndarray | str]], batch_size: int
) -> Iterator[list[tuple[_Work, np.ndarray | str]]]:
    """Neighbours of one bucket, at most `batch_size` decoded clips each."""
    group: list[tuple[_Work, np.ndarray | str]] = []
    for item, result in clips:
        if group and group[0][0].sample.bucket != item.sample.bucket:
            yield group
            group = []
        group.append((item, result))
        if sum(not isinstance(other, str) for _, other in group) == batch_size:
            yield group
            group = []
    if group:
        yield group


def _encode(autoencoder: Autoencoder, clips: Sequence[np.ndarray]) -> list[Tensor]:
    """Latents [C, F, H, W] float32 on the CPU of each clip; halves the batch when memory runs out."""
    if not clips:
        return []
    try:
        with torch.no_grad():
            latents = autoencoder.encode(torch.stack([frames_to_pixels(frames) for frames in clips]))
        return list(latents.to("cpu", torch.float32))
    except torch.OutOfMemoryError as error:
        if len(clips) == 1:
            frames, height, width, _ = clips[0].shape
            raise UserError(
                f"one clip of {width}x{height}@{frames} does not fit into the memory of the device while encoding",
                "The autoencoder needs room for one clip at a time",
                "Set vae_enable_tiling=true, or lower resolution or num_frames",
            ) from error
    middle = len(clips) // 2
    return _encode(autoencoder, clips[:middle]) + _encode(autoencoder, clips[middle:])


def _with_reused_shapes(
    shapes: Mapping[BucketKey, tuple[int, ...]], held: Iterable[_Work]
) -> dict[BucketKey, tuple[int, ...]]:
    complete = dict(shapes)
    for item in held:
        if item.sample.bucket not in complete:
            complete[item.sample.bucket] = tuple(read_entry(item.key, verify=False)[0]["latents"].shape)
    return complete


def _place(sample: Sample) -> _Place:
    """What makes two samples the same excerpt; captions and repeats do not."""
    return (sample.name, sample.frames, sample.crop)


def _frame_bytes(sample: Sample) -> int:
    return sample.frames.num_frames * sample.crop.width * sample.crop.height * 3


def _release_memory() -> None:
    gc.collect()
    torch.cuda.empty_cache()  # does nothing where CUDA was never used
