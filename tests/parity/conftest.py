"""Small checkpoints of every kind of release, written once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a release to its small checkpoint folder (not to be changed)."""
    from simpletuner.models.ltxvideo.miniature import write_miniature

    folder = tmp_path_factory.mktemp("checkpoints")
    written: dict[str, Path] = {}

    def give(release: str) -> Path:
        if release not in written:
            written[release] = write_miniature(folder / release, release, layers=2)
        return written[release]

    return give


@pytest.fixture(scope="session")
def resolved(checkpoint):
    """A function from a release to its resolved source."""
    from simpletuner.config.sections.model import ModelSection
    from simpletuner.models.ltxvideo.family import FAMILY

    def give(release: str, **options):
        return FAMILY.resolve(ModelSection(pretrained_model_name_or_path=str(checkpoint(release)), **options))

    return give
