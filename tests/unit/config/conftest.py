"""A working folder with a configuration that is in order, to be spoilt by the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simpletuner.config.resolve import Examination, examine

GOOD_OPTIONS = {
    "model_family": "ltxvideo",
    "model_type": "lora",
    "max_train_steps": 100,
    "validation_prompt": "A long prompt that tells of a river, a boat, a bridge, the evening light and the wind.",
}
GOOD_DATASETS = [
    {"id": "clips", "type": "local", "dataset_type": "video", "instance_data_dir": "clips"},
    {"id": "texts", "type": "local", "dataset_type": "text_embeds", "cache_dir": "texts"},
]


class Desk:
    """A working folder and the usual questions to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "config").mkdir()
        (folder / "clips").mkdir()
        self.write_datasets(GOOD_DATASETS)
        self.write_options(GOOD_OPTIONS)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def write_options(self, options: dict[str, Any]) -> None:
        self.write("config/config.json", json.dumps(options, indent=2, ensure_ascii=False))

    def write_datasets(self, entries: Any) -> None:
        self.write("config/multidatabackend.json", json.dumps(entries, indent=2, ensure_ascii=False))

    def add(self, **options: Any) -> None:
        """The good options, with these on top."""
        self.write_options({**GOOD_OPTIONS, **options})

    def change_clips(self, **keys: Any) -> None:
        """The good data sets, with these keys on the clips' entry."""
        self.write_datasets([{**GOOD_DATASETS[0], **keys}, GOOD_DATASETS[1]])

    def examine(self, *arguments: str, **environment: str) -> Examination:
        return examine(arguments, environment, self.folder)

    def texts(self, *arguments: str, **environment: str) -> list[str]:
        """All findings as "severity: text"."""
        examination = self.examine(*arguments, **environment)
        problems = examination.config.notices if examination.config else examination.problems
        return [f"{problem.severity.value}: {problem}" for problem in problems]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture(scope="module")
def dataset_desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """One desk for property tests, which only change the data set file."""
    return Desk(tmp_path_factory.mktemp("desk"))


@pytest.fixture(scope="session")
def shared_desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """One desk for property tests, which only change the command line."""
    return Desk(tmp_path_factory.mktemp("desk"))
