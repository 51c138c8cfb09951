"""What the loop and everything around it share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from simpletuner.caching.latents import LatentCache
from simpletuner.caching.prompts import PromptCache
from simpletuner.config.run_config import RunConfig
from simpletuner.data.batches import BatchStream
from simpletuner.events.run import Run
from simpletuner.models.adapters.visiting import VisitingLora
from simpletuner.recipes.encode import AutoencoderShelf
from simpletuner.recipes.plan import RunPlan
from simpletuner.runtime.absence import Absence
from simpletuner.runtime.host import Host
from simpletuner.training.build import Trainable
from simpletuner.training.state import TrainState
from simpletuner.training.step import Objective
from simpletuner.validation.preview import Previewer


@dataclass(frozen=True)
class Session:
    """A run between its set-up and its end.

    `further` are adapters that are put on for validation only, by the names of their videos.
    """

    config: RunConfig
    plan: RunPlan
    host: Host
    run: Run
    latents: LatentCache
    prompts: PromptCache
    autoencoders: AutoencoderShelf
    trainable: Trainable
    state: TrainState
    batches: BatchStream
    objective: Objective
    previewer: Previewer | None = None
    absence: Absence | None = None
    further: tuple[tuple[str, VisitingLora], ...] = ()

    @property
    def folder(self) -> Path:
        return Path(self.config.checkpoint.output_dir)
