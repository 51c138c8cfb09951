"""What a run leaves on the disk: checkpoints while it trains, its weights at the end."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from simpletuner.config.commands import fill_command, read_size
from simpletuner.config.keeping_rules import command_values
from simpletuner.core.errors import ExitCode, UserError
from simpletuner.events.phases import phase
from simpletuner.events.types import CheckpointSaved, Noticed, PhaseBegan, PhaseEnded, StageFinished, StageStarted
from simpletuner.events.wording import told_size
from simpletuner.models.adapters.weights_file import BEST_FOLDER
from simpletuner.recipes.facts import run_facts, weights_metadata
from simpletuner.recipes.session import Session
from simpletuner.runtime.commands import CommandQueue, run_command
from simpletuner.runtime.signals import Requests
from simpletuner.training.checkpoint import prune_checkpoints
from simpletuner.training.saver import CheckpointSaver, Saved
from simpletuner.training.snapshot import take_snapshot, write_average

BEST_RECORD: Final = "best.json"
SAVING: Final = "checkpoint_save"  # see events/phases.py
PAUSE_SECONDS: Final = 5.0  # between two looks at a full disk


class Archive:
    """Saves the checkpoints of one run, in the background if it may, and does what follows each."""

    def __init__(self, session: Session, requests: Requests) -> None:
        self._session = session
        self._requests = requests
        self._settings = session.config.checkpoint
        self._saver = CheckpointSaver(
            session.folder, self._after, in_background=self._settings.checkpoint_in_background
        )
        self._commands = CommandQueue(lambda text: session.run.emit(Noticed("warning", text)))
        self._is_disk_full = False
        self.last_step = session.state.step

    def save(self, *, is_rolling: bool = False) -> None:
        """Save the run as it is; returns when that can no longer be changed, not when it is on the disk.

        Raises:
            UserError: What went wrong with the checkpoint before, see `check`.
        """
        session = self._session
        self._look_at_the_disk()
        session.run.emit(PhaseBegan(SAVING))
        facts = run_facts(session.config, session.plan)
        texts = weights_metadata(session)
        self._or_tell(
            lambda: self._saver.save(
                lambda: take_snapshot(session.state, facts, is_rolling=is_rolling, texts=texts),
            )
        )
        self.last_step = session.state.step
        if self._is_disk_full:
            self.finish()
            raise UserError(
                f"less than {self._settings.disk_low_threshold} free in '{session.folder}'",
                f"disk_low_threshold asks to act, and disk_low_action is {self._settings.disk_low_action}; step "
                f"{self.last_step} is saved",
                "Free some space and start the same command again",
                exit_code=ExitCode.DISK,
            )

    def check(self) -> None:
        """Raise what went wrong with a checkpoint written in the background; does not wait.

        Raises:
            UserError: If the run held numbers that are none (exit code 5), or the disk took no more (exit code 6).
        """
        self._or_tell(self._saver.check)

    def finish(self) -> None:
        """Wait until everything saved is on the disk; raises as `check`."""
        self._or_tell(self._saver.finish)

    def close(self) -> None:
        """Wait for the user's commands as well."""
        self.finish()
        self._commands.finish()

    def _or_tell(self, act: Callable[[], None]) -> None:
        try:
            act()
        except BaseException:
            self._session.run.emit(PhaseEnded(SAVING, 0.0, "failed"))
            raise

    def _after(self, saved: Saved) -> None:
        """What follows a checkpoint; on the thread that wrote it."""
        settings, path = self._settings, saved.path
        self._session.run.emit(PhaseEnded(SAVING, saved.seconds))
        prune_checkpoints(
            self._session.folder,
            settings.checkpoints_total_limit,
            keep=path,
            rolling_limit=settings.checkpoints_rolling_total_limit,
            spared=best_checkpoint(self._session.folder),
        )
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        self._session.run.emit(
            CheckpointSaved(
                saved.snapshot.step, str(path), saved.seconds, size, saved.stalled_seconds, saved.snapshot.is_rolling
            )
        )
        if settings.post_checkpoint_script:
            values = self._command_values(path, saved.snapshot.step)
            self._commands.put(fill_command(settings.post_checkpoint_script, values))

    def _command_values(self, path: Path, step: int) -> dict[str, str]:
        config = self._session.config
        own = {
            "local_checkpoint_path": str(path.resolve()),
            "global_step": str(step),
            "tracker_run_name": config.reporting.tracker_run_name,
            "tracker_project_name": config.reporting.tracker_project_name,
            "model_family": str(config.model.model_family),
            "model_type": str(config.model.model_type),
            "lora_type": config.adapter.lora_type,
            "huggingface_path": config.reporting.hub_model_id or "",
        }
        options = config.validation.model_dump(mode="json")
        return {name: own.get(name, _as_text(options.get(name))) for name in command_values()}

    def validate_outside(self) -> None:
        """Run the user's own validation command on the weights as they are; a failure is told and stops nothing.

        Raises:
            UserError: What went wrong with the checkpoint it is given, see `check`.
        """
        session, settings = self._session, self._session.config.validation
        step, begun = session.state.step, time.monotonic()
        if self.last_step != step:
            self.save(is_rolling=True)
        self.finish()
        values = self._command_values(session.folder / f"checkpoint-{step}", step)
        words = fill_command(str(settings.validation_external_script), values)
        if settings.validation_external_background:
            self._commands.put(words)
            return
        session.run.emit(StageStarted("validation", "Validating with a command", 1, "commands"))
        if fault := run_command(words):
            session.run.emit(Noticed("error", f"validation_external_script failed: {fault}. Training goes on."))
        session.run.emit(StageFinished("validation", 1, time.monotonic() - begun))

    def _look_at_the_disk(self) -> None:
        """Act if there is less room than wanted: wait, run a command, or remember to stop after this checkpoint."""
        settings = self._settings
        if settings.disk_low_threshold is None or not self._is_short():
            return
        told = f"less than {settings.disk_low_threshold} free in '{self._session.folder}' ({told_size(self._free())})"
        self._session.run.emit(Noticed("warning", f"{told}: disk_low_action {settings.disk_low_action}"))
        if settings.disk_low_action == "script":
            values = self._command_values(self._session.folder, self._session.state.step)
            fault = run_command(fill_command(str(settings.disk_low_script), values))
            if fault:
                self._session.run.emit(Noticed("warning", f"disk_low_script failed: {fault}"))
        elif settings.disk_low_action == "wait":
            while self._is_short() and not self._requests():
                time.sleep(PAUSE_SECONDS)
        self._is_disk_full = self._is_short() and not self._requests()

    def _is_short(self) -> bool:
        return self._free() < read_size(str(self._settings.disk_low_threshold))

    def _free(self) -> int:
        return shutil.disk_usage(self._session.folder).free


@contextmanager
def open_archive(session: Session, requests: Requests) -> Iterator[Archive]:
    """Lend the archive of a run; a checkpoint under way is finished before an error leaves, unless somebody insists."""
    archive = Archive(session, requests)
    try:
        yield archive
        archive.close()
    except KeyboardInterrupt:
        raise
    except BaseException:
        # The error that leaves is the one to tell; a checkpoint that fails now tells the same, or comes second.
        try:
            archive.finish()
        except UserError as second:
            session.run.emit(Noticed("warning", str(second)))
        raise


def export(session: Session) -> Path:
    """Write the trained adapter where users look for it: the root of the run folder."""
    path, metadata = weights_path(session), weights_metadata(session)
    with phase("model_save", session.run.emit):
        with session.state.sampled():
            session.trainable.save_weights(path, metadata)
        if session.state.average is not None:
            write_average(session.trainable, session.state.average.tensors(), session.folder, metadata)
    return path


def read_best(folder: Path) -> dict[str, Any] | None:
    """What `best/` of a run says of itself: "step", "evaluation_loss", "weights"; None where there is none."""
    try:
        found = json.loads((folder / BEST_FOLDER / BEST_RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def best_checkpoint(folder: Path) -> Path | None:
    """Where the checkpoint of the step with the lowest evaluation loss is, if one was saved."""
    best = read_best(folder)
    return None if best is None else folder / f"checkpoint-{best.get('step')}"


def weights_path(session: Session) -> Path:
    """File or folder of the trained weights in the run folder."""
    return session.folder / session.trainable.adapter.weights_name


def _as_text(value: object) -> str:
    return "" if value is None else str(value)
