"""All validation videos of a run on one page: `gallery.html` in the run folder, and sheets of pictures beside it.

Rows are steps, columns are prompts and sizes; above them one video beside that of the base model. It asks nothing of
any network. Made anew after each validation, so that it can be looked at while the run goes on.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpletuner.core.files import write_atomic
from simpletuner.events.pages import address
from simpletuner.validation.comparison import draw_course, draw_grid
from simpletuner.validation.names import VIDEO_FOLDER
from simpletuner.validation.page import render
from simpletuner.validation.run_record import Clip, Sight, read_sights

GALLERY = "gallery.html"
_REPORT = "report.html"
_GRID = "grid.png"


@dataclass(frozen=True)
class GridRow:
    """One row of the grid: what it shows, and a video per column (None where there is none)."""

    title: str
    clips: tuple[Clip | None, ...]


def write_gallery(run_folder: Path, *, title: str, with_courses: bool = False) -> Path:
    """Write `gallery.html` into `run_folder`, and a picture of all posters beside the videos.

    Args:
        run_folder: Folder of a run.
        title: Name of the run on the page.
        with_courses: Whether each prompt also gets a picture of its frames, step under step; that opens the videos.

    Returns:
        The path of the page.

    Raises:
        UserError: If `run_folder` is not a run folder, or the disk is full (exit code 6).
    """
    sights = read_sights(run_folder)
    rows = grid_rows(sights)
    page = render(
        "gallery.html.jinja",
        title=title,
        summary=_summary(sights),
        sights=sights,
        rows=rows,
        facts=[_facts(sight) for sight in sights],
        sheets=_sheets(run_folder, sights, rows, with_courses=with_courses),
        has_report=(run_folder / _REPORT).is_file(),
    )
    write_atomic(run_folder / GALLERY, page)
    return run_folder / GALLERY


def grid_rows(sights: tuple[Sight, ...]) -> list[GridRow]:
    """The base model first, then every step, its averaged weights after it."""
    rows = []
    if any(sight.base for sight in sights):
        rows.append(GridRow("base model", tuple(sight.base for sight in sights)))
    steps = sorted({clip.step for sight in sights for clip in (*sight.history, *sight.averaged)})
    for step in steps:
        for told, kept in ((f"step {step}", "history"), (f"step {step}, averaged", "averaged")):
            clips = tuple(_at(getattr(sight, kept), step) for sight in sights)
            if any(clips):
                rows.append(GridRow(told, clips))
    return rows


def _sheets(
    run_folder: Path, sights: tuple[Sight, ...], rows: list[GridRow], *, with_courses: bool
) -> list[tuple[str, str]]:
    """(path, what it shows) of the pictures beside the videos, drawn anew or as they are there already."""
    found = []
    if rows:
        columns = [f"{sight.title} {sight.size}" for sight in sights]
        pictures = [(row.title, [_picture(run_folder, clip) for clip in row.clips]) for row in rows]
        draw_grid(columns, pictures, run_folder / VIDEO_FOLDER / _GRID)
        found.append((f"{VIDEO_FOLDER}/{_GRID}", "Everything: steps as rows, prompts as columns"))
    for sight in sights:
        path = f"{VIDEO_FOLDER}/over_time_{sight.name}.png"
        if with_courses and len(sight.clips) > 1:
            videos = [(_label(clip, sight), run_folder / clip.path) for clip in sight.clips]
            # A video that was removed or damaged by hand costs its sheet and nothing else.
            with contextlib.suppress(OSError, ValueError):
                draw_course(videos, run_folder / path)
        if (run_folder / path).is_file():
            found.append((path, f"{sight.title} {sight.size}: its frames, step under step"))
    return found


def _at(clips: tuple[Clip, ...], step: int) -> Clip | None:
    return next((clip for clip in clips if clip.step == step), None)


def _picture(run_folder: Path, clip: Clip | None) -> Path | None:
    if clip is None:
        return None
    return run_folder / (clip.poster or clip.path) if clip.poster or clip.is_still else None


def _label(clip: Clip, sight: Sight) -> str:
    if clip is sight.base:
        return "base model"
    return f"step {clip.step}" + (", averaged" if any(clip is one for one in sight.averaged) else "")


def _facts(sight: Sight) -> dict[str, Any]:
    """What the page's script knows of one column."""
    trained = sorted((*sight.history, *sight.averaged), key=lambda clip: clip.step)
    clips = trained or ([sight.base] if sight.base else [])
    return {
        "prompt": sight.prompt,
        "base": _clip_facts(sight.base, sight) if sight.base and trained else None,
        "clips": [_clip_facts(clip, sight) for clip in clips],
    }


def _clip_facts(clip: Clip, sight: Sight) -> dict[str, Any]:
    return {
        "path": address(clip.path),
        "poster": address(clip.poster),
        "is_still": clip.is_still,
        "label": _label(clip, sight),
        "measures": {name: f"{value:.3g}" for name, value in clip.measures.items()},
    }


def _summary(sights: tuple[Sight, ...]) -> str:
    count = sum(len(sight.history) + len(sight.averaged) + bool(sight.base) for sight in sights)
    steps = {clip.step for sight in sights for clip in (*sight.history, *sight.averaged)}
    prompts = {sight.nickname for sight in sights}
    return f"{count} videos: {len(prompts)} prompt{_s(prompts)}, {len(steps)} validation{_s(steps)}"


def _s(things: set[Any]) -> str:
    return "" if len(things) == 1 else "s"
