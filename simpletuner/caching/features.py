"""The teacher's features of every clip, made once and kept: then neither autoencoder nor teacher is in memory
while training.

They depend on the clip alone. Each latent frame has the features of the pixel frame it ends with, decoded from the
cached latents, on the grid of the latents; so a cached run and one that makes them on the spot learn from the same
pictures. Read by batches through `FeatureCache.read`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from simpletuner.caching.building import open_site, tidy
from simpletuner.caching.encoding import as_read, stored_as
from simpletuner.caching.entry import DamagedEntryError
from simpletuner.caching.store import EntryReader, Key, Storing, check_entries, lost_entry
from simpletuner.core.errors import UserError
from simpletuner.data.sample import Sample
from simpletuner.events.types import Event, Noticed, StageAdvanced, StageFinished, StageStarted

STAGE: Final = "features"
KIND: Final = "features"
FEATURE_RECIPE: Final = 1  # raise it when the same facts give other values
_WORKERS = 4

# Latents [1, C, F, H, W] -> features [1, F, H, W, E].
MakeFeatures = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FeatureSettings:
    """How features are made and kept.

    Attributes:
        identity: Teacher, its picture size, and the autoencoder that decodes for it.
        storing: Form of new entries.
        pooled: Whether one feature per frame is kept instead of one per patch.
    """

    identity: str
    storing: Storing
    pooled: bool

    def facts(self, latents: Mapping[str, object]) -> dict[str, Any]:
        """Everything that shapes the features of a clip with these latents."""
        return {
            "kind": KIND, "recipe": FEATURE_RECIPE, "teacher": self.identity, "pooled": self.pooled,
            "latents": dict(latents),
        }  # fmt: skip


class FeatureCache:
    """The finished cache of one run; may be read by several threads."""

    def __init__(self, keys: Mapping[str, Key], reader: EntryReader, made: int, reused: int) -> None:
        self._keys = dict(keys)
        self._reader = reader
        self._verified: set[Key] = set()
        self.made = made
        self.reused = reused

    def read(self, sample: Sample) -> Tensor:
        """Features [F, H, W, E] of a sample, or [F, 1, 1, E] pooled; float32 with the precision of bfloat16.

        Raises:
            UserError: If the entry is damaged or gone.
        """
        key = self._keys[sample.name]
        try:
            features = self._reader.read(key, verify=key not in self._verified)[0]["features"]
        except (FileNotFoundError, DamagedEntryError) as error:
            raise lost_entry(key, error) from error
        self._verified.add(key)
        return as_read(features)


def cache_features(
    samples: Sequence[Sample],
    read_latents: Callable[[Sample], Tensor],
    facts_of: Callable[[Sample], Mapping[str, object]],
    folders: Mapping[str, Path],
    settings: FeatureSettings,
    load: Callable[[], MakeFeatures],
    *,
    emit: Callable[[Event], None],
) -> FeatureCache:
    """Make what is missing and give access to all.

    Args:
        samples: What will be trained.
        read_latents: Sample -> latents [C, F, H, W], already cached.
        facts_of: Sample -> what shapes its latents.
        folders: Cache folder of each data set; features lie beside its latents.
        settings: How they are made and kept.
        load: Brings in autoencoder and teacher; called only if something is missing, and once.
        emit: Receives progress.

    Raises:
        UserError: If the disk is full or closed to writing (exit code 6); finished entries stay.
    """
    started = time.monotonic()
    keys = find_feature_keys(samples, facts_of, folders, settings)
    wanted = {keys[sample.name]: sample for sample in samples}
    reader = EntryReader(dict.fromkeys(key.folder for key in wanted))
    status = check_entries(reader, list(wanted), KIND, verify=set(), workers=_WORKERS)
    missing = [key for key in wanted if key not in status.usable]
    emit(StageStarted(STAGE, "Teacher's features", len(wanted), "clips", done=len(status.usable)))
    made = 0
    if missing:
        make, folder_list = load(), [key.folder for key in missing]
        with open_site(reader, folder_list, settings.storing, status.suspects) as site:
            for turn in site.turns(missing, lambda key: key):
                for key in turn:
                    features = make(read_latents(wanted[key])[None])[0]
                    if not bool(torch.isfinite(features).all()):
                        raise UserError(
                            f"the teacher's features of {wanted[key].name} are not finite numbers",
                            "They would spoil the model",
                            "Try another crepa_encoder",
                        )
                    if settings.pooled:
                        features = features.mean((1, 2), keepdim=True)
                    facts = settings.facts(facts_of(wanted[key]))
                    site.writer.write(key, facts, {"features": stored_as(features.cpu(), torch.bfloat16)})
                    site.release(key)
                    made += 1
                    emit(StageAdvanced(STAGE, len(status.usable) + made, detail=wanted[key].name))
                turn.drain()
    else:
        tidy(key.folder for key in wanted)
    for sentence in status.sentences:
        emit(Noticed("note", sentence))
    emit(StageFinished(STAGE, len(wanted), time.monotonic() - started, f"{made} made"))
    return FeatureCache(keys, reader, made, len(wanted) - made)


def find_feature_keys(
    samples: Sequence[Sample],
    facts_of: Callable[[Sample], Mapping[str, object]],
    folders: Mapping[str, Path],
    settings: FeatureSettings,
) -> dict[str, Key]:
    """Name of each sample -> its entry; see `cache_features` for the arguments."""
    return {
        sample.name: Key.of(folders[sample.dataset], sample.path, settings.facts(facts_of(sample)))
        for sample in samples
    }
