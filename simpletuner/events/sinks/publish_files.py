"""What is published of a run: weights, checkpoint, card, videos and settings, each under its path there.

Everything lies in the run folder first. A checkpoint is held by links while it waits, so that removing
old ones cannot empty it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpletuner.core.files import write_atomic
from simpletuner.events.sink import SinkContext
from simpletuner.events.sinks.hub_card import VIDEO_FOLDER, WEIGHTS_NAME, CardFacts, find_videos, write_card

CARD = "README.md"
SETTINGS = "simpletuner_config.json"
TRANSFORMER = "transformer"  # the weights of a full training, a folder
HELD = ".waiting-"  # beginning of the names under which checkpoints are held
# What makes a result: files, and folders with all that is in them.
RESULT_PARTS = (
    WEIGHTS_NAME, "lycoris_config.json", f"ema/{WEIGHTS_NAME}", TRANSFORMER, f"ema/{TRANSFORMER}",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One upload: `folder` holds its files; `name` is the checkpoint's, or empty for the result of the run."""

    step: int
    folder: Path
    name: str = ""

    @property
    def told(self) -> str:
        """How people call it."""
        return self.name or "the finished weights"


def gather(job: Job, context: SinkContext, repository: str) -> dict[str, Path | bytes]:
    """Path at the other side -> content; the weights at the top are always the newest that were uploaded.

    Args:
        job: What is uploaded.
        context: The run.
        repository: How the card tells readers to load it.
    """
    root, files = context.folder, dict[str, "Path | bytes"]()
    if job.name:
        files |= {f"{job.name}/{name}": path for name, path in files_below(job.folder).items()}
    for part in RESULT_PARTS:
        if (job.folder / part).is_file():
            files[part] = job.folder / part
        else:
            files |= {f"{part}/{name}": path for name, path in files_below(job.folder / part).items()}
    document = context.document
    prompts = document.get("prompts", [])
    videos = find_videos(root, prompts, job.step)
    for video in videos:
        files[video.path] = root / video.path
        poster = (root / video.path).with_suffix(".png")
        if poster.is_file():
            files[f"{VIDEO_FOLDER}/{poster.name}"] = poster
    facts = CardFacts(
        repository, context.run_name, job.step, context.options(), document.get("datasets", []), prompts, videos,
        has_average=any(name.startswith("ema/") for name in files),
    )  # fmt: skip
    card = write_card(facts).encode("utf-8", "replace")
    settings = public_settings(document).encode("utf-8", "replace")
    write_atomic(root / CARD, card)
    write_atomic(root / SETTINGS, settings)
    return {**files, CARD: card, SETTINGS: settings}


def hold(checkpoint: Path, folder: Path, target: str) -> None:
    """A second name for the files of a checkpoint, without copying them; nothing where links do not work."""
    held = held_path(checkpoint.name, folder, target)
    shutil.rmtree(held, ignore_errors=True)
    try:
        for name, path in files_below(checkpoint).items():
            (held / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(path, held / name)
    except OSError:
        shutil.rmtree(held, ignore_errors=True)


def held_path(name: str, folder: Path, target: str) -> Path:
    """Where a checkpoint is held for `target`."""
    return folder / f"{HELD}{target}-{name}"


def count_held(folder: Path, target: str) -> int:
    """How many checkpoints are held for `target`."""
    return sum(1 for _ in folder.glob(f"{HELD}{target}-*"))


def files_below(folder: Path) -> dict[str, Path]:
    """Path below the folder -> file; empty when there is no such folder."""
    found: dict[str, Path] = {}
    with contextlib.suppress(OSError):
        found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return found


def public_settings(document: Any) -> str:
    """The options somebody wrote, without secrets and without the folders of this machine."""
    chosen = {
        name: facts["value"]
        for section in document.get("options", {}).values()
        for name, facts in section.items()
        if facts["origin"] != "default" and facts["value"] != "***" and not _is_place(facts["value"])
    }
    return json.dumps(chosen, indent=2, ensure_ascii=False, default=str) + "\n"


def _is_place(value: Any) -> bool:
    return isinstance(value, str) and (value.startswith(("/", "~", "\\\\")) or value[1:3] in (":\\", ":/"))
