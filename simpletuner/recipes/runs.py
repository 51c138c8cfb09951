"""Which runs there are below some folders, what state they are in, and how each goes on.

Joins what the lock, the journal, the checkpoints and the stored configuration tell. Reads files only,
loads nothing, and believes no claim that the lock contradicts.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpletuner.config.values import show
from simpletuner.core.errors import UserError
from simpletuner.events.run import CONFIG_FILE, VERSIONS_FILE
from simpletuner.events.run_state import RunState, read_run_state
from simpletuner.events.sinks.journal import JOURNAL
from simpletuner.runtime.lock import is_held
from simpletuner.training.manifest import newest_complete
from simpletuner.validation.run_record import options_of, read_document

DEPTH = 3  # folders below a named one that are looked into
_PLACE = re.compile(r"(?P<file>.+\.(?:json|jsonc|toml|env)):\d+")


@dataclass(frozen=True)
class FoundRun:
    """One run.

    Attributes:
        folder: Its run folder.
        state: "running", "starting", "ending", "finished", "stopped", "failed", "crashed", or "never began".
        facts: What its journal tells.
        checkpoint: Step of the newest checkpoint that looks complete; None without one.
        working_folder: Where it was started; empty when unknown.
        command: The command that starts it again, for a shell in `working_folder`; secrets are left out.
        missing: Options given on the command line that are secrets, and so not in `command`.
    """

    folder: Path
    state: str
    facts: RunState
    checkpoint: int | None
    working_folder: str
    command: str
    missing: tuple[str, ...] = ()

    @property
    def told(self) -> str:
        """The state as a few words."""
        step, total = self.facts.step, self.facts.total_steps
        position = f"step {step} of {total}" if total else f"step {step}"
        if self.state in ("starting", "never began"):
            return self.state
        if self.state == "ending":
            return f"ending after {position} (uploads or messages are still on their way)"
        return f"{self.state} at {position}"

    @property
    def advice(self) -> str:
        """How the run goes on; empty while it is at work."""
        if self.state in ("running", "starting", "ending"):
            return ""
        if self.state == "finished":
            return "done; a larger max_train_steps trains on"
        if self.checkpoint is None:
            return "no checkpoint was saved: it would begin anew"
        again = self.facts.step - self.checkpoint
        repeated = f", {again} step{'s' if again != 1 else ''} are done again" if again > 0 else ""
        return f"goes on from checkpoint-{self.checkpoint}{repeated}"


def find_runs(folders: Sequence[Path]) -> list[FoundRun]:
    """Runs in and below the folders, the latest activity first.

    Raises:
        UserError: If a folder does not exist.
    """
    found: dict[Path, FoundRun] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(
                f"there is no folder '{folder}'",
                "Runs are looked for in the folders named, and in output/ when none is",
                "Give the output_dir of a run, or a folder that holds some",
            )
        for path in _run_folders(folder, DEPTH):
            run = read_run(path)
            if run is not None:
                found[path.resolve()] = run
    return sorted(found.values(), key=lambda run: run.facts.last_time, reverse=True)


def read_run(folder: Path) -> FoundRun | None:
    """The run in `folder`; None when there is none."""
    held = is_held(folder)
    facts = read_run_state(folder)
    if facts is None:
        return None
    options, versions = options_of(read_document(folder / CONFIG_FILE)), read_document(folder / VERSIONS_FILE)
    command, missing = _command(options)
    return FoundRun(
        folder, _state(facts, held), facts, _newest_checkpoint(folder), str(versions.get("working_folder", "")),
        command, missing,
    )  # fmt: skip


def _state(facts: RunState, held: bool) -> str:
    if held:
        if facts.is_beginning or not facts.starts:
            return "starting"
        return "ending" if facts.outcome else "running"
    if not facts.starts:
        return "never began"
    return facts.outcome or "crashed"


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / JOURNAL).is_file():
        yield folder
        return
    if depth:
        try:
            inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        except PermissionError:
            return
        for path in inner:
            yield from _run_folders(path, depth - 1)


def _newest_checkpoint(folder: Path) -> int | None:
    newest = newest_complete(folder)
    return None if newest is None else newest[0]


def _command(options: Mapping[str, Mapping[str, Any]]) -> tuple[str, tuple[str, ...]]:
    """The command that gave these options, by where each came from; and the secrets it lacks."""
    words, missing = ["simpletuner", "train"], []
    files = {match["file"] for facts in options.values() if (match := _PLACE.fullmatch(str(facts["origin"])))}
    own = sorted(file for file in files if not file.endswith("config.env"))
    if own and own[0] != "config/config.json":
        words += ["--config", own[0]]
    for name, facts in options.items():
        if facts["origin"] != "command line":
            continue
        if facts["value"] == "***":
            missing.append(name)
        else:
            words.append(f"{name}={_written(facts['value'])}")
    resume = options.get("resume_from_checkpoint", {}).get("value")
    if resume not in (None, "latest"):
        words = [word for word in words if not word.startswith("resume_from_checkpoint=")]
        words.append("resume_from_checkpoint=latest")
    return shlex.join(words), tuple(missing)


def _written(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return json.dumps(value)
    return value if isinstance(value, str) else show(value)
