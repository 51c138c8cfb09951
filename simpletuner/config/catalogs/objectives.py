"""Objectives beside flow matching: the switch of each, and where it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from simpletuner.config.option import Section
from simpletuner.core.catalog import Catalog


@dataclass(frozen=True)
class ObjectiveRow:
    """One further objective.

    Attributes:
        target: Function that builds it from `objectives.auxiliary.Surroundings`.
        section: Section of the options in which its switch stands.
        switch: Option that is neither 0 nor false where it is wanted.
        help: One sentence for people.
    """

    target: str
    section: str
    switch: str
    help: str

    def is_on(self, sections: Mapping[str, Section]) -> bool:
        """Whether these options want it."""
        return bool(getattr(sections[self.section], self.switch))


OBJECTIVES: Catalog[ObjectiveRow] = Catalog(
    "objective",
    {
        # First what changes the model's input, then what looks at its answer.
        "rollout": ObjectiveRow(
            "simpletuner.objectives.rollout:build_rollout", "rollout", "scheduled_sampling_max_step_offset",
            "Scheduled sampling: the model is shown what it made itself.",
        ),
        "crepa": ObjectiveRow(
            "simpletuner.objectives.crepa:build_crepa", "crepa", "crepa_enabled",
            "CREPA: hidden states agree with vision features of the same and the neighbouring frames.",
        ),
        "temporal_difference": ObjectiveRow(
            "simpletuner.objectives.temporal_difference:build_temporal_difference", "auxiliary",
            "temporal_difference_weight", "Changes from frame to frame are those of the clip.",
        ),
    },
)  # fmt: skip
