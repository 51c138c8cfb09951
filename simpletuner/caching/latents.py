"""Latents of every sample, encoded once and kept.

Only what is missing is encoded, and the autoencoder is loaded only if something is. Several processes that fill one
cache share the work. Entries are complete or absent, so a killed build loses nothing that was finished. A clip that
cannot be decoded is left out with its reason; the rest goes on. Batches read the result through `LatentCache.read`
(`data/batches.py`); what is encoded on demand is encoded there, by `encoding.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from simpletuner.caching.building import open_site, tidy
from simpletuner.caching.encoding import ClipEncoder, as_read, decode, encoder_lanes, frame_bytes, or_refused, stored_as
from simpletuner.caching.entry import DamagedEntryError
from simpletuner.caching.fingerprint import latent_facts
from simpletuner.caching.pipeline import Limits, Pipeline, Refused, Stages
from simpletuner.caching.store import EntryReader, EntryWriter, Key, Status, Storing, check_entries, lost_entry
from simpletuner.core.errors import UserError
from simpletuner.data.decode import Frames, decode_frames
from simpletuner.data.sample import CropPlan, FramePlan, LeftOut, Sample, Unfit
from simpletuner.data.storage import Storage
from simpletuner.events.types import Event, Noticed, StageAdvanced, StageFinished, StageStarted
from simpletuner.models.family import Autoencoder

STAGE = "latents"
KIND = "latents"
_AHEAD_BYTES = 1 << 30  # decoded frames waiting for the encoder

_Place = tuple[str, str, FramePlan, CropPlan]


@dataclass(frozen=True)
class LatentSettings:
    """How latents are made and kept.

    Attributes:
        identity: Autoencoder as it is run, see `fingerprint.encoder_identity`.
        dtype: Number format in which they are kept.
        storing: Form of new entries.
        batch_size: Clips of equal shape encoded at once, at least 1.
        workers: Threads that decode and verify.
        device: Where the autoencoder is.
        on_demand: Data sets whose clips are encoded when they are first read.
        unwritten: Those of them of which nothing is kept.
        redrawn: Data sets whose samples lie elsewhere in each epoch; these are encoded when they are read and not kept.
        scanned: Data sets whose entries are verified to the last byte at the start; of the others the headers are
            compared then, and the checksums when they are first read.
    """

    identity: str
    dtype: torch.dtype = torch.bfloat16
    storing: Storing = field(default_factory=Storing)
    batch_size: int = 1
    workers: int = 8
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    on_demand: frozenset[str] = frozenset()
    unwritten: frozenset[str] = frozenset()
    redrawn: frozenset[str] = frozenset()
    scanned: frozenset[str] = frozenset()

    def facts(self, sample: Sample) -> dict[str, object]:
        """Everything that shapes the entry of `sample`."""
        return latent_facts(sample, self.identity, str(self.dtype).removeprefix("torch."))


@dataclass(frozen=True)
class _Work:
    sample: Sample
    key: Key


class LatentCache:
    """The finished cache of one run; may be read by several threads.

    Attributes:
        left_out: Clips without latents, each with its reason; they must not be trained.
        encoded: Entries made in this start.
        reused: Entries that were there already, or that another process made meanwhile.
        on_demand: Clips that will be encoded when they are first read.
        stale: Entries on the disk that nothing wants any more.
    """

    def __init__(
        self,
        work: Mapping[_Place, _Work],
        outcome: _Outcome,
        reader: EntryReader,
        encoder: ClipEncoder,
        settings: LatentSettings,
        emit: Callable[[Event], None],
    ) -> None:
        self._keys = {place: item.key for place, item in work.items() if place not in outcome.left_out}
        self._reader = reader
        self._encoder = encoder
        self._settings = settings
        self._emit = emit
        # A file each: what is read in any order has no shard to fill, and needs no closing.
        self._single = Storing("files", settings.storing.compress)
        self._verified: set[Key] = set()
        self._memory: dict[_Place, Tensor] | None = None
        self._waiting = {place for place in outcome.on_demand if place in self._keys}
        self.left_out = tuple(outcome.left_out.values())
        self.encoded = outcome.encoded
        self.reused = outcome.reused
        self.on_demand = len(self._waiting)
        self.stale = outcome.stale

    def holds(self, sample: Sample) -> bool:
        """Whether `sample` has latents, or will have them when it is first read."""
        return _place(sample) in self._keys

    def stay_in_memory(self) -> None:
        """From now on keep what is read, in its number format."""
        self._memory = {}

    def read(self, sample: Sample) -> Tensor:
        """Normalised latents [C, F, H, W] of `sample`, float32, with the precision in which they are kept.

        The first read of an entry verifies its checksum. An entry that is damaged or gone is made again, and that
        is told.

        Raises:
            UserError: If the clip can no longer be decoded.
            KeyError: If `sample` was not cached; see `holds`.
        """
        place = _place(sample)
        if place not in self._keys and sample.dataset in self._settings.redrawn:
            return as_read(stored_as(self._encode(sample), self._settings.dtype))
        if self._memory is not None and (kept := self._memory.get(place)) is not None:
            return as_read(kept)
        key = self._keys[place]
        try:
            latents = self._reader.read(key, verify=key not in self._verified)[0]["latents"]
        except (FileNotFoundError, DamagedEntryError) as error:
            return as_read(stored_as(self._make(sample, key, error), self._settings.dtype))
        self._verified.add(key)
        if self._memory is not None:
            latents = self._memory[place] = latents.clone()
        return as_read(latents)

    def _make(self, sample: Sample, key: Key, error: Exception) -> Tensor:
        awaited = _place(sample) in self._waiting and isinstance(error, FileNotFoundError)
        if not awaited:
            lost = lost_entry(key, error)
            self._emit(Noticed("warning", f"{lost.problems[0].what}; it is made again."))
            self._reader.discard(key)
        latents = self._encode(sample)
        if sample.dataset not in self._settings.unwritten:
            _keep(EntryWriter("", self._single), key, sample, latents, self._settings)
            self._waiting.discard(_place(sample))
        return latents

    def _encode(self, sample: Sample) -> Tensor:
        try:
            return self._encoder.encode(sample)
        except Unfit as unfit:
            raise _undecodable(sample, unfit.reason) from unfit


@dataclass
class _Outcome:
    left_out: dict[_Place, LeftOut] = field(default_factory=dict)
    on_demand: set[_Place] = field(default_factory=set)
    encoded: int = 0
    reused: int = 0
    stale: int = 0


def cache_latents(
    samples: Sequence[Sample],
    storages: Mapping[str, Storage],
    folders: Mapping[str, Path],
    settings: LatentSettings,
    load_autoencoder: Callable[[], Autoencoder],
    *,
    emit: Callable[[Event], None],
) -> LatentCache:
    """Encode what is missing and give access to all.

    Args:
        samples: What will be trained.
        storages: Where the files of each data set lie.
        folders: Cache folder of each data set; several may share one.
        settings: How latents are made and kept.
        load_autoencoder: Called only if something is missing, and once; what it returns is dropped before this
            function returns. Called again for what is encoded on demand.
        emit: Receives progress and notices.

    Raises:
        UserError: If the disk is full or closed to writing (exit code 6; finished entries stay), or
            if one clip alone does not fit into memory.
    """
    started = time.monotonic()
    work = find_work(samples, folders, settings)
    reader = EntryReader(dict.fromkeys(item.key.folder for item in work.values()))
    status = check_latents(work.values(), reader, settings)
    for sentence in status.sentences:
        emit(Noticed("warning" if status.damaged and sentence == status.sentences[0] else "note", sentence))
    outcome = _Outcome(stale=status.stale, reused=len(status.usable))
    missing = [item for item in work.values() if item.key not in status.usable]
    later = [item for item in missing if item.sample.dataset in settings.on_demand]
    now = [item for item in missing if item.sample.dataset not in settings.on_demand]
    emit(StageStarted(STAGE, "Encoding clips", len(work) - len(later), "clips", done=outcome.reused))
    encoder = ClipEncoder(storages, settings.device, load_autoencoder)
    if now:
        _encode_now(now, storages, encoder, reader, settings, status.suspects, outcome, emit)
        encoder.drop()
    else:
        tidy(item.key.folder for item in work.values())
    if later:
        _check_later(later, storages, settings, outcome, emit)
    emit(StageFinished(STAGE, len(work) - len(later), time.monotonic() - started, _summary(outcome)))
    return LatentCache(work, outcome, reader, encoder, settings, emit)


def find_work(samples: Sequence[Sample], folders: Mapping[str, Path], settings: LatentSettings) -> dict[_Place, _Work]:
    """What must be in the cache: each excerpt once, with its key."""
    return {
        _place(sample): _Work(sample, Key.of(folders[sample.dataset], sample.path, settings.facts(sample)))
        for sample in samples
    }


def check_latents(work: Collection[_Work], reader: EntryReader, settings: LatentSettings) -> Status:
    """Compare what is there with what must be; see `store.check_entries`."""
    scanned = {item.key for item in work if item.sample.dataset in settings.scanned}
    return check_entries(reader, [item.key for item in work], KIND, verify=scanned, workers=settings.workers)


def _encode_now(
    missing: Sequence[_Work],
    storages: Mapping[str, Storage],
    encoder: ClipEncoder,
    reader: EntryReader,
    settings: LatentSettings,
    suspects: Collection[Key],
    outcome: _Outcome,
    emit: Callable[[Event], None],
) -> None:
    ordered = sorted(missing, key=lambda item: item.sample.bucket)
    folders = [item.key.folder for item in ordered]
    with (
        open_site(reader, folders, settings.storing, suspects) as site,
        encoder_lanes(settings.device) as lanes,
    ):
        stages = Stages[_Work, Frames, Tensor](
            decode=lambda item: decode(storages[item.sample.dataset], item.sample),
            encode=encoder.encode_frames,
            write=lambda item, latents: _keep(site.writer, item.key, item.sample, latents, settings),
            group_of=lambda item: item.sample.bucket,
            raw_bytes=lambda item: frame_bytes(item.sample),
        )
        limits = Limits(settings.batch_size, settings.workers, lanes, _AHEAD_BYTES)
        done = outcome.reused
        for turn in site.turns(ordered, lambda item: item.key):
            for item, refused in Pipeline(stages, limits).run(turn):
                site.release(item.key)
                if refused:
                    _leave_out(item, refused, outcome, emit)
                else:
                    outcome.encoded += 1
                found = len(turn.drain())
                outcome.reused += found
                done += 1 + found
                emit(StageAdvanced(STAGE, done, detail=item.sample.name))
            outcome.reused += len(turn.drain())
            done = outcome.encoded + outcome.reused + len(outcome.left_out)


def _check_later(
    later: Sequence[_Work],
    storages: Mapping[str, Storage],
    settings: LatentSettings,
    outcome: _Outcome,
    emit: Callable[[Event], None],
) -> None:
    """Leave out the clips whose first frame cannot be decoded: training cannot go around one it meets later."""

    def look(item: _Work) -> Frames | Refused:
        return or_refused(lambda: decode_frames(storages[item.sample.dataset], item.sample, [0]))

    with ThreadPoolExecutor(settings.workers) as pool:
        for item, seen in zip(later, pool.map(look, later), strict=True):
            if isinstance(seen, Refused):
                _leave_out(item, seen, outcome, emit)
            else:
                outcome.on_demand.add(_place(item.sample))


def _keep(writer: EntryWriter, key: Key, sample: Sample, latents: Tensor, settings: LatentSettings) -> None:
    writer.write(key, settings.facts(sample), {"latents": stored_as(latents, settings.dtype)})


def _leave_out(item: _Work, why: Refused, outcome: _Outcome, emit: Callable[[Event], None]) -> None:
    sample = item.sample
    outcome.left_out[_place(sample)] = LeftOut(sample.dataset, sample.path, why.reason, damaged=why.damaged)
    emit(Noticed("warning", f"{sample.name} is left out: {why.reason}"))


def _summary(outcome: _Outcome) -> str:
    summary = f"{outcome.encoded} encoded, {outcome.reused} reused"
    if outcome.on_demand:
        summary += f", {len(outcome.on_demand)} on demand"
    if outcome.left_out:
        summary += f", {len(outcome.left_out)} left out"
    return summary


def _undecodable(sample: Sample, reason: str) -> UserError:
    return UserError(
        f"{sample.name} cannot be encoded on demand: {reason}",
        "The clip passed at the start, and training has a place for it in each epoch, so it cannot be skipped now",
        "Repair or remove the clip, or leave vae_cache_ondemand and vae_cache_disable off: then such clips are left "
        "out before training",
    )


def _place(sample: Sample) -> _Place:
    """What makes two samples the same excerpt; captions and repeats do not."""
    return (sample.dataset, sample.path, sample.frames, sample.crop)
