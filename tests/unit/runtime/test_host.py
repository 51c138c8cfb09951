"""What is told to the garbage collector."""

from __future__ import annotations

import gc

from simpletuner.runtime.host import spare_collections


def test_what_was_imported_is_passed_over_once() -> None:
    spare_collections.cache_clear()
    gc.unfreeze()  # the tests have let it pass over everything already
    try:
        spare_collections()
        there = gc.get_freeze_count()
        assert there > 10_000
        kept = [[number] for number in range(1000)]
        spare_collections()  # a second run in this process must not keep what the first has left
        assert gc.get_freeze_count() <= there
        assert len(kept) == 1000
    finally:
        gc.unfreeze()
        gc.freeze()
