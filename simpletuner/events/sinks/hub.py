"""The Hub as a place that results are published to: one commit per upload, all files or none."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from simpletuner.config.hub_name import choose_repository
from simpletuner.events.sink import SinkContext
from simpletuner.events.sinks.hub_card import VIDEO_FOLDER
from simpletuner.events.sinks.hub_client import HubRepository
from simpletuner.events.sinks.publish_files import CARD, RESULT_PARTS, SETTINGS, Job
from simpletuner.events.sinks.publisher import Publisher, PublishPatience, Refusal


class HubTarget:
    """The repository of a run."""

    name = "hub"
    told = "the Hub"

    def __init__(self, context: SinkContext) -> None:
        settings = context.reporting
        name = choose_repository(settings.hub_model_id, settings.tracker_project_name)
        self._is_private = settings.model_card_private
        self._repository = HubRepository(name, is_private=self._is_private)

    @property
    def repository(self) -> str:
        return self._repository.name

    def upload(self, files: Mapping[str, Path | bytes], title: str) -> tuple[str, Refusal | None]:
        refusal = self._repository.make()
        return ("", refusal) if refusal is not None else self._repository.commit(files, title)

    def advice(self, job: Job, source: Path) -> str:
        private = " --private" if self._is_private else ""
        place = shlex.quote(str(source.resolve()))
        if job.name:
            return f"hf upload {self.repository} {place} {job.name}{private}"
        kinds = (*RESULT_PARTS[:3], "transformer/*", "ema/transformer/*", CARD, SETTINGS, f"{VIDEO_FOLDER}/*")
        wanted = " ".join(f"--include {shlex.quote(kind)}" for kind in kinds)
        return f"hf upload {self.repository} {place} . {wanted}{private}"


def hub_sink(context: SinkContext, patience: PublishPatience | None = None) -> Publisher:
    """Uploads what the options ask for to the Hub."""
    settings = context.reporting
    return Publisher(
        context, HubTarget(context), checkpoints=settings.push_checkpoints_to_hub, result=settings.push_to_hub,
        patience=patience or PublishPatience(),
    )  # fmt: skip
