"""Each way of training does what it promises, measured on the demo's model (tools/demo_model/learning.py)."""

from __future__ import annotations

import pytest

from tools.demo_model.learning import MEASUREMENTS, Bench

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Shared: the caches of the clips are written once."""
    return Bench(tmp_path_factory.mktemp("learning"))


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_training_does_what_it_promises(name: str, bench: Bench) -> None:
    found = MEASUREMENTS[name](bench)
    broken = [claim for claim, holds in found.claims.items() if not holds]
    assert not broken, f"{name}: {found.text}"
