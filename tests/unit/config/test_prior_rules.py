"""Prior data in the configuration: what it needs, and where it does nothing."""

# ruff: noqa: E501 - one finding per line reads as a table

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.parametrize(
    ("options", "keys", "text"),
    [
        ({}, {"is_regularisation_data": True}, "nothing but prior data. An adapter that is only held to the base model's answers learns nothing."),
        ({}, {"is_regularization_data": True}, "nothing but prior data."),
        ({"model_type": "full"}, {"is_regularisation_data": True}, "where all weights are trained no such model is left."),
        ({"crepa_enabled": True}, {"is_regularisation_data": True}, "CREPA pulls the same clips away from what the base model makes of them."),
        ({}, {"is_regularisation_data": True, "dataset_type": "eval"}, "is_regularisation_data has no effect on an evaluation set"),
    ],
)  # fmt: skip
def test_sentences(desk: Any, options: dict[str, Any], keys: dict[str, Any], text: str) -> None:
    desk.change_clips(**keys)
    desk.add(**options)
    texts = desk.texts()
    assert any(text in found for found in texts), texts
