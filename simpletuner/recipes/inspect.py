"""`simpletuner data inspect`: a page that shows what the trainer sees, as decoded from the cached latents.

Every other stop of a run trusts numbers; here a person looks. Nothing is encoded unless asked for, no file of the
user is touched, and a missing model or cache only means that the source side is shown alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from simpletuner.caching.entry import DamagedEntryError
from simpletuner.caching.latents import LatentSettings, cache_latents
from simpletuner.caching.store import EntryReader, Key
from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.run_config import RunConfig
from simpletuner.core.errors import Problem, Severity, UserError
from simpletuner.core.files import ensure_writable, staged_file
from simpletuner.data.contact_sheet import Panel, draw_panels, shown_indices, spread
from simpletuner.data.decode import decode_sample
from simpletuner.data.find import FoundSamples
from simpletuner.data.findings import Finding, find_all
from simpletuner.data.inspect_page import Card, Inspection, PixelError, write_page
from simpletuner.data.looks import take_looks
from simpletuner.data.sample import Sample, Unfit
from simpletuner.data.storage import Storage
from simpletuner.events.types import Event, Noticed, StageAdvanced, StageFinished, StageStarted
from simpletuner.models.family import Autoencoder, ModelFamily
from simpletuner.recipes.encode import latent_settings, load_autoencoder
from simpletuner.recipes.plan import RunPlan
from simpletuner.recipes.survey import evaluation_samples, find_data, plan_buckets
from simpletuner.runtime.host import Host, find_host, release_memory

STAGE = "pictures"
PICTURES = "pictures"
FRAMES_IN_STRIP = 5
STRIP_FRAME_PX = 320  # widest frame in a strip; a strip of five fills a wide screen
STRIP_GAP_PX = 4
DIFFERENCE_GAIN = 4  # errors of a few levels would not be seen
PANELS_PER_SHEET = 12
FLAGGED_SHARE = 0.5  # of the samples with pictures; the rest is spread over all
NOT_CACHED = "not cached yet: start with --encode, or train once"

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class _Latents:
    """Access to the cached latents and to what decodes them."""

    settings: LatentSettings
    folders: Mapping[str, Path]
    reader: EntryReader
    load: Callable[[], Autoencoder]
    device: torch.device

    def key(self, sample: Sample) -> Key:
        return Key.of(self.folders[sample.dataset], sample.path, self.settings.facts(sample))


def inspect_data(
    config: RunConfig, folder: Path, emit: Callable[[Event], None], *, limit: int = 24, encode: bool = False
) -> Path:
    """Write the page and its pictures into `folder`; gives the path of the page.

    Args:
        config: The run whose data is shown.
        folder: Made if absent; a page in it is replaced.
        emit: Receives progress and notices.
        limit: Samples with pictures; flagged ones come first.
        encode: Whether latents that are missing are made first, as training would make them.

    Raises:
        UserError: If no data set can be read, or the folder cannot be written.
    """
    ensure_writable(folder, "folder of the page")
    host = find_host()
    found, storages = find_data(config, emit)
    trained, problems = _trained(found, config)
    encoded = (*trained, *(sample for members in evaluation_samples(found, config).values() for sample in members))
    latents, notes = _open_latents(config, found, encoded, storages, host, emit, encode=encode)
    looks = take_looks(found.samples, config.all_datasets, storages, workers=config.caching.max_workers, emit=emit)
    left_out = (*found.left_out, *looks.failed)
    findings = find_all(
        found.samples, trained, found.left_out, storages, looks,
        token_length=config.model.tokenizer_max_length, batch_size=config.schedule.train_batch_size,
        untrained=[entry.id for entry in config.eval_datasets],
    )  # fmt: skip
    cached = _cached(found.samples, latents) if latents else None
    chosen = choose_samples(found.samples, findings, limit)
    cards, panels = _draw_cards(chosen, storages, latents, folder, findings, emit)
    inspection = Inspection(
        title=config.reporting.tracker_run_name,
        samples=found.samples,
        trained=frozenset(sample.name for sample in trained),
        cached=cached,
        cards=cards,
        left_out=left_out,
        findings=findings,
        problems=problems,
        notes=(*found.notes, *notes),
        sheets=_draw_sheets(panels, folder),
    )
    if latents:
        release_memory()
    return write_page(inspection, FAMILIES[str(config.model.model_family)].grid, folder)


def choose_samples(samples: Sequence[Sample], findings: Sequence[Finding], limit: int) -> list[Sample]:
    """At most `limit` samples to be drawn, in their order: up to half of them flagged ones, the rest spread evenly."""
    named = {finding.sample for finding in findings if finding.severity is not Severity.NOTE}
    flagged = spread([sample for sample in samples if sample.name in named], max(1, int(limit * FLAGGED_SHARE)))
    taken = {sample.name for sample in flagged[:limit]}
    others = [sample for sample in samples if sample.name not in taken]
    taken |= {sample.name for sample in spread(others, limit - len(taken))}
    return [sample for sample in samples if sample.name in taken]


# Data and cache ---------------------------------------------------------------------------------


def _trained(found: FoundSamples, config: RunConfig) -> tuple[tuple[Sample, ...], tuple[Problem, ...]]:
    try:
        return plan_buckets(found, config).samples, ()
    except UserError as error:
        measured = {entry.id for entry in config.eval_datasets}
        return tuple(sample for sample in found.samples if sample.dataset not in measured), error.problems


def _open_latents(
    config: RunConfig,
    found: FoundSamples,
    samples: Sequence[Sample],
    storages: Mapping[str, Storage],
    host: Host,
    emit: Callable[[Event], None],
    *,
    encode: bool,
) -> tuple[_Latents | None, tuple[str, ...]]:
    """The cache of the run, filled if asked for; None with the reason if the model cannot be found."""
    folders = {entry.id: Path(str(entry.cache_dir_vae)) for entry in config.all_datasets}
    if not encode and not any(folder.is_dir() for folder in folders.values()):
        return None, (f"Latents are {NOT_CACHED}.",)
    family: ModelFamily = FAMILIES.load(str(config.model.model_family))
    try:
        source = family.resolve(config.model)
    except UserError as error:
        if encode:
            raise
        emit(Noticed("warning", f"the latents cannot be shown, because the model was not found: {error}"))
        return None, (f"The latents are not shown, because the model was not found: {error}",)
    prompts = Path(str(config.text_embeds.cache_dir))
    plan = RunPlan(family, source, found, tuple(samples), storages, folders, prompts, None)
    settings = latent_settings(config, plan, host.device)
    if encode:
        cache_latents(
            samples, storages, folders, replace(settings, on_demand=frozenset(), unwritten=frozenset()),
            lambda: load_autoencoder(config, plan, host), emit=emit,
        )  # fmt: skip
    reader = EntryReader(dict.fromkeys(folders.values()))
    return _Latents(settings, folders, reader, lambda: load_autoencoder(config, plan, host), host.device), ()


def _cached(samples: Sequence[Sample], latents: _Latents) -> frozenset[str]:
    def is_cached(sample: Sample) -> bool:
        try:
            latents.reader.peek(latents.key(sample))
        except (FileNotFoundError, DamagedEntryError):
            return False
        return True

    return frozenset(sample.name for sample in samples if is_cached(sample))


# Pictures ---------------------------------------------------------------------------------------


def _draw_cards(
    samples: Sequence[Sample],
    storages: Mapping[str, Storage],
    latents: _Latents | None,
    folder: Path,
    findings: Sequence[Finding],
    emit: Callable[[Event], None],
) -> tuple[list[Card], list[Panel]]:
    """Decode and draw the chosen samples, one at a time; the autoencoder is loaded at the first that has latents."""
    started = time.monotonic()
    emit(StageStarted(STAGE, "Drawing clips", len(samples), "clips"))
    alarms: dict[str, list[str]] = {}
    for item in findings:
        if item.sample and item.severity is not Severity.NOTE:
            alarms.setdefault(item.sample, []).append(item.kind)
    artist = _Artist(folder, latents)
    cards, panels = [], []
    for number, sample in enumerate(samples, start=1):
        card, panel = artist.draw(sample, storages[sample.dataset], f"{number:03d}")
        cards.append(card)
        panels.append(replace(panel, alarm=panel.alarm or ", ".join(alarms.get(sample.name, ()))))
        emit(StageAdvanced(STAGE, number, detail=sample.name))
    emit(StageFinished(STAGE, len(samples), time.monotonic() - started))
    return cards, panels


class _Artist:
    """Draws samples into `<folder>/pictures`."""

    def __init__(self, folder: Path, latents: _Latents | None) -> None:
        self._folder = folder
        self._latents = latents
        self._autoencoder: Autoencoder | None = None

    def draw(self, sample: Sample, storage: Storage, number: str) -> tuple[Card, Panel]:
        """The card of one sample and its panel on the sheet."""
        indices = shown_indices(sample.frames.num_frames, FRAMES_IN_STRIP)
        on_sheet = shown_indices(sample.frames.num_frames)
        plan = sample.frames
        moments = tuple(plan.start_seconds + index / plan.frame_rate for index in indices)
        decoded, state = self._decode_latents(sample)
        try:
            source = decode_sample(storage, sample)
        except (Unfit, OSError) as fault:
            reason = str(fault)
            if decoded is None:
                return Card(sample, latents=state, alarm=reason), Panel(sample, (), reason)
            only = ("latents", self._strip(decoded[indices], f"{number}-latents"))
            card = Card(sample, moments, (only,), latents=state, alarm=reason)
            return card, Panel(sample, (decoded[on_sheet],), reason)
        shown = ("source", self._strip(source[indices], f"{number}-source"))
        if decoded is None:
            return Card(sample, moments, (shown,), latents=state), Panel(sample, (source[on_sheet],))
        gained = np.minimum(_difference(source[indices], decoded[indices]) * DIFFERENCE_GAIN, 255).astype(np.uint8)
        rows = (
            shown,
            ("latents", self._strip(decoded[indices], f"{number}-latents")),
            (f"difference ×{DIFFERENCE_GAIN}", self._strip(gained, f"{number}-difference")),
        )
        middle = len(source) // 2
        full = self._save(np.concatenate((source[middle], decoded[middle]), axis=1), f"{number}-full")
        panel = Panel(sample, (source[on_sheet], decoded[on_sheet]))
        return Card(sample, moments, rows, full, state, measure_error(source, decoded)), panel

    def _decode_latents(self, sample: Sample) -> tuple[Frames | None, str]:
        """Frames [F, H, W, 3] decoded from the cached latents; None with the reason if there are none."""
        if self._latents is None:
            return None, NOT_CACHED
        try:
            stored = self._latents.reader.read(self._latents.key(sample), verify=True)[0]["latents"]
        except FileNotFoundError:
            return None, NOT_CACHED
        except DamagedEntryError as error:
            return None, f"the cache entry is damaged: {error}; the next start makes it again"
        if self._autoencoder is None:
            self._autoencoder = self._latents.load()
        pixels = self._autoencoder.decode(stored.float()[None].to(self._latents.device))[0]
        return pixels_to_frames(pixels), "cached"

    def _strip(self, frames: Frames, name: str) -> str:
        """Save frames side by side, shrunk to a width that a screen can show; gives the path below the folder."""
        scale = min(1.0, STRIP_FRAME_PX / frames.shape[2])
        size = (max(1, round(frames.shape[2] * scale)), max(1, round(frames.shape[1] * scale)))
        strip = Image.new("RGB", (len(frames) * (size[0] + STRIP_GAP_PX) - STRIP_GAP_PX, size[1]), (127, 127, 127))
        for place, frame in enumerate(frames):
            picture = Image.fromarray(frame)
            shown = picture if scale == 1 else picture.resize(size, Image.Resampling.LANCZOS)
            strip.paste(shown, (place * (size[0] + STRIP_GAP_PX), 0))
        return self._save(np.asarray(strip), name)

    def _save(self, picture: Frames, name: str) -> str:
        path = f"{PICTURES}/{name}.png"
        with staged_file(self._folder / path) as staging:
            Image.fromarray(picture).save(staging, format="PNG")
        return path


def _draw_sheets(panels: Sequence[Panel], folder: Path) -> tuple[str, ...]:
    """Contact sheets of the cards, for those who want one picture instead of a page."""
    sheets = []
    for first in range(0, len(panels), PANELS_PER_SHEET):
        path = f"contact_sheet_{first // PANELS_PER_SHEET + 1}.png"
        title = "What the trainer sees: first, middle and last trained frame of the source; below, decoded from latents"
        draw_panels(panels[first : first + PANELS_PER_SHEET], title, folder / path)
        sheets.append(path)
    return tuple(sheets)


def pixels_to_frames(pixels: torch.Tensor) -> Frames:
    """Pixels [3, F, H, W] in [-1, 1] -> frames uint8 [F, H, W, 3]; the inverse of `decode.frames_to_pixels`."""
    levels = pixels.permute(1, 2, 3, 0).add(1).mul(127.5).round_().clamp_(0, 255)
    frames: Frames = levels.to("cpu", torch.uint8).numpy()
    return frames


def measure_error(source: Frames, decoded: Frames) -> PixelError:
    """Pixel differences of two clips uint8 [F, H, W, 3] of one shape."""
    absolute = squared = 0.0
    means = []
    for one, other in zip(source, decoded, strict=True):
        difference = _difference(one, other)
        means.append(float(difference.mean()))
        absolute += means[-1]
        squared += float(np.square(difference, dtype=np.float64).mean())
    mean_square = squared / len(means)
    psnr = 99.0 if mean_square == 0 else min(99.0, 10 * float(np.log10(255**2 / mean_square)))
    return PixelError(absolute / len(means), max(means), int(np.argmax(means)), psnr)


def _difference(one: Frames, other: Frames) -> NDArray[np.int16]:
    return np.abs(one.astype(np.int16) - other.astype(np.int16))
