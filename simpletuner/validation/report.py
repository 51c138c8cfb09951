"""One page that shows a run: `report.html` in the run folder, readable offline and for good.

Everything comes from the run folder (see `run_record.py`); the page refers to files beside it by
relative paths and asks nothing of any network, so the folder can be moved or sent as it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpletuner.core.files import write_atomic
from simpletuner.events.sinks.journal import read_journal
from simpletuner.events.wording import told_duration, told_size
from simpletuner.validation.comparison import compare_videos
from simpletuner.validation.gallery import GALLERY, write_gallery
from simpletuner.validation.loss_plot import PLOT, draw_loss_plot, smooth, smoothing_span
from simpletuner.validation.memory_record import memory_rows
from simpletuner.validation.names import VIDEO_FOLDER
from simpletuner.validation.page import render
from simpletuner.validation.report_charts import (
    hardware_charts,
    loss_chart,
    measure_charts,
    measure_legend,
    training_charts,
)
from simpletuner.validation.run_record import RunRecord, Sight, read_run
from simpletuner.validation.timeline import ORDER, OTHER, simplified, sum_spans
from simpletuner.validation.verdict import tell_verdict

REPORT = "report.html"
CONTACT_SHEET = "contact_sheet.png"
_SMALL_SIGHTS = 6  # beside the first; the others are in the gallery
_WORTH_A_ROW = 0.0005  # share of the time that is told
_OUTCOMES = {
    "finished": "Finished",
    "stopped": "Stopped early",
    "failed": "Failed",
    "unfinished": "Not finished yet",
}
_FILES = (
    (REPORT, "this page"),
    (GALLERY, "all validation videos, step under step"),
    (CONTACT_SHEET, "what the trainer saw"),
    (PLOT, "loss and learning rate, to send to somebody"),
    ("resolved_config.json", "every setting and where it came from"),
    ("versions.json", "package versions, platform, seed"),
    ("metrics.jsonl", "one line per step"),
    ("journal.jsonl", "everything that happened"),
)


@dataclass(frozen=True)
class FileRow:
    """One file of the run folder."""

    path: str
    purpose: str
    size: str


@dataclass(frozen=True)
class TimeRow:
    """How long one kind of work took; `colour` is its class on the page."""

    what: str
    seconds: float
    told: str
    share: float
    colour: str


def write_report(run_folder: Path, *, title: str) -> Path:
    """Write `report.html`, `gallery.html` and the pictures they show into `run_folder`.

    Args:
        run_folder: Folder with a journal; everything else in it is optional.
        title: Name of the run on the page.

    Emit `RunFinished` first: the page tells the outcome that the journal tells.

    Returns:
        The path of the page.

    Raises:
        UserError: If `run_folder` is not a run folder, or the disk is full (exit code 6).
    """
    record = read_run(run_folder)
    if record.metrics:
        draw_loss_plot(run_folder, record.metrics)
    if record.sights:
        write_gallery(run_folder, title=title, with_courses=True)
    times = _times(record)
    page = render(
        "report.html.jinja",
        title=title,
        record=record,
        outcome=_OUTCOMES.get(record.outcome, record.outcome),
        headline=_headline(record),
        verdict=tell_verdict(record),
        tiles=_tiles(record),
        strip=_draw_strip(record, record.sights[0]) if record.sights else "",
        others=[sight for sight in record.sights[1:] if sight.latest or sight.base][:_SMALL_SIGHTS],
        gallery=GALLERY if record.sights else "",
        loss=loss_chart(record.metrics),
        curves=training_charts(record),
        measures=measure_charts(record.sights),
        measure_legend=measure_legend(record.sights),
        hardware=hardware_charts(record.metrics, record.loads),
        throughput=_throughput(record),
        times=times,
        bars=_bars(record, times),
        memory=memory_rows(run_folder),
        run_time=told_duration(record.wall_seconds),
        contact_sheet=CONTACT_SHEET if (run_folder / CONTACT_SHEET).is_file() else "",
        datasets=_dataset_rows(record),
        settings=_changed_settings(record),
        files=_files(run_folder),
        adapter_file=_adapter_file(run_folder),
        base_model=record.option("pretrained_model_name_or_path") or "",
        validation_prompt=record.sights[0].prompt if record.sights else "a prompt like your captions",
    )
    # The report lists itself; its size is known only now and not worth a second rendering.
    write_atomic(run_folder / REPORT, page)
    return run_folder / REPORT


def run_title(run_folder: Path) -> str:
    """The name of the run in `run_folder`, that of the folder where the run does not tell."""
    started = list(read_journal(run_folder, kinds=("run_started",)))
    return str(started[-1]["run_name"]) if started else run_folder.resolve().name


def _headline(record: RunRecord) -> str:
    rank, kind = record.option("lora_rank"), record.option("model_type")
    what = f"LoRA of rank {rank}" if kind == "lora" and rank else "Model"
    if kind == "lora" and record.option("lora_type") == "lycoris":  # has ranks of its own, in its own file
        what = "LyCORIS adapter"
    release = record.option("model_flavour")
    on = f" for LTX-Video {release}" if release else ""
    steps = f"{record.last_step} step{'s' if record.last_step != 1 else ''}"
    text = f"{what}{on}: {steps} in {told_duration(record.wall_seconds)}"
    return text + (f", in {record.starts} starts" if record.starts > 1 else "")


def _tiles(record: RunRecord) -> list[tuple[str, str, str]]:
    """(label, value, note) of the figures at the top."""
    metrics = record.metrics
    wanted = record.option("max_train_steps")
    tiles = [("Steps", str(record.last_step), f"of {wanted}" if wanted else "")]
    if not metrics:
        return tiles
    losses = [math.nan if line.get("loss") is None else float(line["loss"]) for line in metrics]
    span = smoothing_span(len(losses))
    trend = smooth(losses, span)
    first = trend[min(span, len(trend)) - 1]  # as the verdict has it: the mean of a whole span begins at its end
    tiles.append(("Loss", f"{trend[-1]:.4f}", f"{first:.4f} at the start, both over {span} steps"))
    if record.evaluations:
        curve = record.evaluations[0].curve
        held_out = [one.loss for one in record.evaluations if one.curve == curve]
        tiles.append(("Held-out loss", f"{held_out[-1]:.4f}", f"{held_out[0]:.4f} at first, {curve}"))
    seconds = sum(float(line.get("seconds") or 0) for line in metrics)
    tiles.append(("Speed", f"{seconds / len(metrics):.2f} s", "per step"))
    tiles.append(("Clips seen", str(sum(int(line.get("samples", 0)) for line in metrics)), "repeats included"))
    peak = max(int(line.get("memory_bytes") or 0) for line in metrics)
    if peak:
        tiles.append(("Memory", told_size(peak), "highest while training"))
    return tiles


def _draw_strip(record: RunRecord, sight: Sight) -> str:
    """Path of the before/after picture of one sight; empty when there is nothing to compare."""
    if sight.base is None or sight.latest is None:
        return ""
    path = f"{VIDEO_FOLDER}/before_after_{sight.name}.png"
    try:
        compare_videos(
            record.folder / sight.base.path,
            record.folder / sight.latest.path,
            record.folder / path,
            label=f"step {sight.latest.step}",
        )
    except (OSError, ValueError):  # a video was removed or damaged by hand: the page goes without
        return ""
    return path


def _throughput(record: RunRecord) -> list[tuple[str, str]]:
    """(label, value) of what the machine did per second of training, and which machine it was."""
    told = [(label, value) for heading, lines in record.story for label, value in lines if label == "device"]
    found = record.hardware
    cpus = record.versions.get("cpu_count")
    if found:
        if found["device_bytes"]:
            told.append(("card", f"{found['device']}, {told_size(int(found['device_bytes']))}"))
        told.append(("processor", f"{found['cpu']}, {found['cores']} threads for this run"))
        told.append(("memory", told_size(int(found["memory_bytes"]))))
    elif cpus:
        told.append(("processor", f"{cpus} threads, {record.versions.get('machine', '')}"))
    watts = [float(load["device_watts"]) for _, load in record.loads if load.get("device_watts") is not None]
    if watts:
        told.append(("power of the card", f"{sum(watts) / len(watts):.0f} W on average"))
    seconds = sum(float(line.get("seconds") or 0) for line in record.metrics)
    if seconds > 0:
        told.append(
            ("samples", f"{sum(int(line.get('samples', 0)) for line in record.metrics) / seconds:.2f} per second")
        )
        tokens = sum(int(line.get("tokens", 0)) for line in record.metrics)
        told.append(("latent tokens", f"{tokens / seconds:,.0f} per second"))
    return told


def _times(record: RunRecord) -> list[TimeRow]:
    total = sum(span.seconds for span in record.spans) or 1.0
    return [
        TimeRow(what, seconds, told_duration(seconds), seconds / total, _colour(what))
        for what, seconds in sum_spans(record.spans)
        if seconds / total >= _WORTH_A_ROW
    ]


def _bars(record: RunRecord, times: Sequence[TimeRow]) -> list[tuple[str, float, float, str]]:
    """(style class, left, width in percent, what the pointer tells) of each stretch of the timeline."""
    total = record.spans[-1].end if record.spans else 0.0
    if total <= 0:
        return []
    return [
        (
            _colour(span.what), 100 * span.begin / total, 100 * span.seconds / total,
            f"{span.what}: {told_duration(span.seconds)}, from {told_duration(span.begin)} on",
        )
        for span in simplified(record.spans)
    ]  # fmt: skip


def _colour(what: str) -> str:
    if what == OTHER:
        return "c8"  # a lighter grey than any piece of work has
    known = [one for one in ORDER if one != OTHER]
    # Training in the page's first colour, the others in the order of a run.
    order = sorted(known, key=lambda one: one != "training steps")
    return f"c{order.index(what) if what in order else 6}"


def _dataset_rows(record: RunRecord) -> list[tuple[str, str]]:
    """(id, sentence) of each data set entry."""
    rows = []
    for entry in record.datasets:
        video = entry.get("video") or {}
        frames = f", {video['num_frames']} frames" if video.get("num_frames") else ""
        repeats = f", each {entry['repeats'] + 1} times per epoch" if entry.get("repeats") else ""
        use = "only measured, never trained: " if entry.get("dataset_type") == "eval" else ""
        resolution = f"{entry['resolution']:g}" if "resolution" in entry else ""  # 96, not 96.0
        what = f"{use}{resolution} {entry.get('resolution_type', '')}{frames}{repeats}"
        rows.append((str(entry.get("id", "")), what.strip()))
    return rows


def _changed_settings(record: RunRecord) -> list[tuple[str, str, str]]:
    """(option, value, origin) of everything that is not a default."""
    return [
        (name, _told_value(facts), str(facts.get("origin", "")))
        for name, facts in sorted(record.options.items())
        if facts.get("origin") not in (None, "default")
    ]


def _told_value(facts: Mapping[str, Any]) -> str:
    value = facts.get("value")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _files(folder: Path) -> list[FileRow]:
    rows = [FileRow(path.name, "the trained adapter", told_size(path.stat().st_size)) for path in _weights(folder)]
    if (folder / VIDEO_FOLDER).is_dir():
        count = len(list((folder / VIDEO_FOLDER).glob("*.mp4")))
        rows.append(FileRow(f"{VIDEO_FOLDER}/", "validation videos, posters and comparisons", f"{count} videos"))
    checkpoints = sorted((p for p in folder.glob("checkpoint-*") if p.is_dir()), key=_step_of)
    rows += [FileRow(f"{path.name}/", "a state to go on from", "") for path in checkpoints]
    for name, purpose in _FILES:
        path = folder / name
        if name == REPORT:
            rows.append(FileRow(name, purpose, ""))
        elif path.is_file():
            rows.append(FileRow(name, purpose, told_size(path.stat().st_size)))
    return rows


def _step_of(checkpoint: Path) -> int:
    digits = checkpoint.name.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else -1


def _weights(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.safetensors") if path.is_file())


def _adapter_file(folder: Path) -> str:
    weights = _weights(folder)
    return weights[0].name if weights else ""
