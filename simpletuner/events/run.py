"""One run: its folder, who is told what happens, and the facts written down before it starts.

    <run folder>/
        resolved_config.json   every option with its value and where the value came from
        versions.json          Python, platform, packages, git revision, seed, working folder
        journal.jsonl          every event, append-only
        metrics.jsonl          one line per optimizer step
        delivery/              how far each receiver outside has got

Events are handed to every sink in order on the calling thread; those that tell somebody outside only
queue them and work on threads of their own. A sink that fails is switched off with a warning and never
stops training; only the journal, which everything else is rebuilt from, stops the run when the disk
takes no more (docs/decisions/0005-events.md). Knows nothing of models.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import simpletuner
from simpletuner.config.catalogs.sinks import LOCAL_SINKS, SINKS
from simpletuner.config.publishing_file import PublishingPlace
from simpletuner.config.sections.reporting import ReportingSection
from simpletuner.config.webhook_file import Webhook
from simpletuner.core.errors import UserError
from simpletuner.core.files import ensure_writable, write_json_atomic
from simpletuner.events.choice import chosen_sinks, missing_packages
from simpletuner.events.sink import Sink, SinkContext
from simpletuner.events.sinks.journal import last_sequence, utc_now
from simpletuner.events.types import Event, Noticed, RunFinished, RunStarted, StepFinished

CONFIG_FILE = "resolved_config.json"
VERSIONS_FILE = "versions.json"

_PACKAGES = (
    "simpletuner", "torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "huggingface-hub",
    "av", "numpy", "pillow", "pydantic", "rich",
)  # fmt: skip
_SINK_FAULTS = (OSError, ValueError, UserError)


class Run:
    """A run in `folder`; `emit` tells every sink what happened."""

    def __init__(
        self, folder: Path, name: str, sinks: Sequence[str] = LOCAL_SINKS, context: SinkContext | None = None
    ) -> None:
        """Open the named sinks in the order given.

        Args:
            folder: The run folder.
            name: Name of the run in reports.
            sinks: Names in `config/catalogs/sinks.py`.
            context: What remote sinks are opened with; its `emit` becomes this run's.

        Raises:
            UserError: If a durable sink cannot write (exit code 6), or a name is not in the catalog.
        """
        self.folder = folder
        self.name = name
        self._lock = threading.RLock()
        self._sequence = last_sequence(folder)
        self._sinks: dict[str, Sink] = {}
        self._started = self._ended = False
        self._last_step = 0
        given = replace(context or SinkContext(folder, name), emit=self._emit_for_sink)
        faults: dict[str, BaseException] = {}
        for sink_name in sinks:
            try:
                self._sinks[sink_name] = SINKS.load(sink_name)(given if SINKS[sink_name].remote else folder)
            except _SINK_FAULTS as error:
                if SINKS[sink_name].durable:
                    raise
                faults[sink_name] = error
        for sink_name, fault in faults.items():
            self._tell_loss(sink_name, fault)

    def emit(self, event: Event) -> None:
        """Tell every sink; may be called from any thread.

        Raises:
            UserError: If a durable sink cannot write (exit code 6).
        """
        with self._lock:
            self._sequence += 1
            self._note(event)
            for name, sink in list(self._sinks.items()):
                try:
                    sink.receive(event, self._sequence)
                except _SINK_FAULTS as error:
                    if SINKS[name].durable:
                        raise
                    del self._sinks[name]
                    self._tell_loss(name, error)

    def record(self, document: Mapping[str, Any]) -> None:
        """Write down the configuration as it has become.

        Raises:
            UserError: If the disk takes no more (exit code 6).
        """
        write_json_atomic(self.folder / CONFIG_FILE, dict(document))

    def fail(self, error: BaseException) -> None:
        """Record that `error` ended the run, unless its end was told already."""
        if self._started and not self._ended:
            stopped = isinstance(error, KeyboardInterrupt)
            detail = _told_stop(error) if stopped else str(error) or type(error).__name__
            # The journal itself may be what failed; the first error is the one to report.
            with contextlib.suppress(UserError, OSError):
                self.emit(RunFinished(self._last_step, "stopped" if stopped else "failed", detail))

    def close(self) -> None:
        """Close every sink; a fault while closing cannot harm what was delivered.

        Remote sinks go first and outside the lock: what they could not deliver is still told to the others.
        """
        for name, sink in reversed(list(self._sinks.items())):
            if SINKS[name].remote:
                with contextlib.suppress(*_SINK_FAULTS):
                    sink.close()
        with self._lock:
            for name, sink in self._sinks.items():
                if not SINKS[name].remote:
                    with contextlib.suppress(*_SINK_FAULTS):
                        sink.close()
            self._sinks = {}

    def _emit_for_sink(self, event: Event) -> None:
        # A journal that cannot be written stops the run where it is next told something, not here.
        with contextlib.suppress(*_SINK_FAULTS):
            self.emit(event)

    def _note(self, event: Event) -> None:
        if isinstance(event, StepFinished):
            self._last_step = event.step
        elif isinstance(event, RunStarted):
            self._started = True
        elif isinstance(event, RunFinished):
            self._ended = True

    def _tell_loss(self, name: str, error: BaseException) -> None:
        self.emit(Noticed("warning", f"the sink '{name}' failed and is switched off for this run: {error}"))


@contextlib.contextmanager
def open_run(
    folder: Path,
    document: Mapping[str, Any],
    name: str,
    *,
    seed: int | None = None,
    sinks: Sequence[str] = LOCAL_SINKS,
    reporting: ReportingSection | None = None,
    webhooks: tuple[Webhook, ...] = (),
    places: tuple[PublishingPlace, ...] = (),
) -> Iterator[Run]:
    """Prepare the run folder and lend the run; its end is recorded even when the body fails.

    Args:
        folder: The run folder, made if absent.
        document: `RunConfig.as_document()`, written to `resolved_config.json`.
        name: Name of the run in reports.
        seed: Seed of the run, noted in `versions.json`.
        sinks: Names in `config/catalogs/sinks.py` that are always told.
        reporting: Which trackers and uploads are asked for; None asks for none.
        webhooks: Who is told over the network.
        places: Where results are published beside the Hub.

    Raises:
        UserError: If the folder cannot be written, the disk is full (exit code 6), or the package of a tracker is
            not installed.
    """
    further: tuple[str, ...] = ()
    if reporting is not None:
        if missing := tuple(missing_packages(reporting, places=places)):
            raise UserError.of(missing)
        further = chosen_sinks(reporting, webhooks, places)
    ensure_writable(folder, "output_dir")
    write_json_atomic(folder / CONFIG_FILE, dict(document))
    facts = {"seed": seed, "started": utc_now(), "working_folder": str(Path.cwd())}
    write_json_atomic(folder / VERSIONS_FILE, describe_versions() | facts)
    context = SinkContext(folder, name, document, reporting or ReportingSection(), webhooks, places)
    run = Run(folder, name, (*sinks, *further), context)
    try:
        yield run
    except BaseException as error:
        run.fail(error)
        raise
    finally:
        run.close()


def _told_stop(error: BaseException) -> str:
    """Which signal ended the run at once, and what to do."""
    number = error.args[0] if error.args else signal.SIGINT
    by = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    return f"Stopped at once by {by}; what is finished is kept. Start the same command again to go on from there."


def describe_versions() -> dict[str, Any]:
    """Python, platform, versions of the packages that shape results, and the git revision if any."""
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "git_revision": _git_revision(),
        "packages": {package: _version(package) for package in _PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Commit of the clone this package lies in; None for an installed wheel. Starts no process."""
    git = Path(simpletuner.__path__[0]).resolve().parent / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="ascii").strip()
        if not head.startswith("ref: "):
            return head
        reference = head.removeprefix("ref: ")
        loose = git / reference
        if loose.is_file():
            return loose.read_text(encoding="ascii").strip()
        for line in (git / "packed-refs").read_text(encoding="utf-8").splitlines():
            commit, _, packed = line.partition(" ")
            if packed == reference:
                return commit
    except (OSError, ValueError):
        pass  # no clone, a linked worktree or an empty one: the revision is unknown
    return None
