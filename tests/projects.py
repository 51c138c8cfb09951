"""A small project as a user has it: a folder with clips, a checkpoint, two configuration files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Project:
    """A folder that `simpletuner train --config <config>` can train."""

    folder: Path
    config: Path
    datasets: Path
    clips: Path
    output: Path

    def arguments(self, **overrides: Any) -> list[str]:
        """Arguments of `simpletuner` that train this project."""
        return ["train", "--config", str(self.config), *(f"{key}={value}" for key, value in overrides.items())]

    @contextmanager
    def start(self, **overrides: Any) -> Iterator[subprocess.Popen[str]]:
        """`simpletuner train` as a process of its own, with all it says in `stdout`; gone on exit."""
        command = [sys.executable, "-m", "simpletuner", *self.arguments(**overrides)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    def change_config(self, **changes: Any) -> None:
        """Set options in config.json; None removes one."""
        self._change(self.config, lambda document: document, changes)

    def change_dataset(self, **changes: Any) -> None:
        """Set keys of the clips' entry in multidatabackend.json; None removes one."""
        self._change(self.datasets, lambda document: document[0], changes)

    def _change(self, path: Path, place: Callable[[Any], dict[str, Any]], changes: dict[str, Any]) -> None:
        document = json.loads(path.read_text())
        target = place(document)
        for key, value in changes.items():
            if value is None:
                target.pop(key, None)
            else:
                target[key] = value
        path.write_text(json.dumps(document, indent=2))

    def metrics(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl."""
        return [json.loads(line) for line in (self.output / "metrics.jsonl").read_text().splitlines()]
