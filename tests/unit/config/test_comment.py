"""The user's comment: what is filled in, and what is never told."""

from __future__ import annotations

import pytest

from simpletuner.config.comment import fill_comment, read_comment

VALUES = {"current_step": 7, "current_epoch": 2, "timestamp": "2026-01-01T00:00:00Z"}


def test_places_are_filled() -> None:
    lines = ["step {current_step} of epoch {current_epoch}", "{timestamp} by {env:STUDIO}{env:NOBODY} {}"]
    assert fill_comment(lines, VALUES, {"STUDIO": "us {current_step}"}) == (
        "step 7 of epoch 2\n2026-01-01T00:00:00Z by us {current_step} {}"
    )


@pytest.mark.parametrize("name", ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "db_password", "WANDB_API_KEY"])
def test_secrets_stay_here(name: str) -> None:
    with pytest.raises(ValueError, match="sounds like a secret"):
        read_comment(f"x {{env:{name}}}")
