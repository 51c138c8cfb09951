"""Rules about prior data: what is trained towards the base model's own answer needs a base, and something to learn."""

from __future__ import annotations

from collections.abc import Iterator

from simpletuner.config.dataset_file import DatasetFile
from simpletuner.config.draft import Draft
from simpletuner.core.errors import Problem

KEY = "is_regularisation_data"


def check_prior(file: DatasetFile, draft: Draft) -> Iterator[Problem]:
    """Findings about sets of prior data; one that is an evaluation set is told by the rules about these."""
    prior = [dataset for dataset in file.datasets if dataset.is_regularisation_data and not dataset.is_evaluation]
    if not prior:
        return
    where = file.where(prior[0].id, KEY)
    if draft.values["model_type"] == "full":
        yield Problem(
            f"{KEY} with {draft.told('model_type')}",
            "The target is the answer of the model without its adapter; where all weights are trained no such model is "
            "left",
            f"Set model_type to lora, or {KEY} to false",
            where,
        )
    if draft.values["crepa_enabled"]:
        yield Problem(
            f"{KEY} with crepa_enabled = true",
            "CREPA pulls the same clips away from what the base model makes of them",
            f"Set crepa_enabled or {KEY} to false",
            where,
        )
    learnt = [dataset for dataset in file.datasets if not (dataset.is_regularisation_data or dataset.is_evaluation)]
    if not learnt and not file.broken:
        yield Problem(
            "nothing but prior data",
            "An adapter that is only held to the base model's answers learns nothing",
            f"Add a data set without {KEY}",
            where,
        )
