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
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from simpletuner.core.files import write_atomic
from simpletuner.events.wording import told_duration, told_size
from simpletuner.validation.comparison import compare_videos
from simpletuner.validation.generate import VIDEO_FOLDER
from simpletuner.validation.loss_plot import DARK_PLOT, LIGHT_PLOT, draw_loss_plots, smooth, smoothing_span
from simpletuner.validation.run_record import RunRecord, Sight, read_run

REPORT = "report.html"
CONTACT_SHEET = "contact_sheet.png"
_OUTCOMES = {
    "finished": "Finished",
    "stopped": "Stopped early",
    "failed": "Failed",
    "unfinished": "Not finished yet",
}
_FILES = (
    (REPORT, "this page"),
    (CONTACT_SHEET, "what the trainer saw"),
    (LIGHT_PLOT, "loss and learning rate"),
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


def write_report(run_folder: Path, *, title: str) -> Path:
    """Write `report.html`, the loss plots and the before/after strips into `run_folder`.

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
        draw_loss_plots(run_folder, record.metrics)
    page = (
        _environment()
        .get_template("report.html.jinja")
        .render(
            title=title,
            record=record,
            outcome=_OUTCOMES.get(record.outcome, record.outcome),
            headline=_headline(record),
            tiles=_tiles(record),
            strips={sight: _draw_strip(record, sight) for sight in record.sights},
            has_plot=bool(record.metrics),
            light_plot=LIGHT_PLOT,
            dark_plot=DARK_PLOT,
            contact_sheet=CONTACT_SHEET if (run_folder / CONTACT_SHEET).is_file() else "",
            settings=_changed_settings(record),
            files=_files(run_folder),
            adapter_file=_adapter_file(run_folder),
            base_model=record.option("pretrained_model_name_or_path") or "",
            validation_prompt=record.sights[0].prompt if record.sights else "a prompt like your captions",
        )
    )
    # The report lists itself; its size is known only now and not worth a second rendering.
    write_atomic(run_folder / REPORT, page)
    return run_folder / REPORT


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    # "%", "#" and "?" in file names would otherwise change the address.
    environment.filters["address"] = lambda path: quote(path, safe="/")
    return environment


def _headline(record: RunRecord) -> str:
    rank, kind = record.option("lora_rank"), record.option("model_type")
    what = f"LoRA of rank {rank}" if kind == "lora" and rank else "Model"
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
    first = _mean(losses[:span])
    tiles.append(("Loss", f"{smooth(losses, span)[-1]:.4f}", f"{first:.4f} at the start, both over {span} steps"))
    seconds = sum(float(line.get("seconds") or 0) for line in metrics)
    tiles.append(("Speed", f"{seconds / len(metrics):.2f} s", "per step"))
    tiles.append(("Clips seen", str(sum(int(line.get("samples", 0)) for line in metrics)), "repeats included"))
    peak = max(int(line.get("memory_bytes") or 0) for line in metrics)
    if peak:
        tiles.append(("Memory", told_size(peak), "highest while training"))
    return tiles


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _draw_strip(record: RunRecord, sight: Sight) -> str:
    """Path of the before/after picture of one sight; empty when there is nothing to compare."""
    if sight.base is None or sight.latest is None:
        return ""
    path = f"{VIDEO_FOLDER}/before_after_{sight.nickname}_{sight.size}.png"
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
