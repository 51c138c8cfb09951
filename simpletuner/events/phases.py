"""Pieces of work without a known length, by the names under which receivers of lifecycle messages know them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from simpletuner.events.types import Event, PhaseBegan, PhaseEnded

PHASES: Mapping[str, str] = MappingProxyType(
    {
        "init_data_backend": "Configuring data backends",
        "init_load_base_model": "Loading base model",
        "init_prepare_models": "Preparing model components",
        "init_resume_checkpoint": "Resume checkpoint",
        "benchmark_base_model": "Benchmarking base model",
        "checkpoint_save": "Saving checkpoint",
        "model_save": "Saving final model",
        "final_validation": "Final validations",
    }
)


@contextmanager
def phase(name: str, emit: Callable[[Event], None]) -> Iterator[None]:
    """Tell that a piece of work begins, and that it ended or failed; `name` is one of `PHASES`."""
    emit(PhaseBegan(name))
    begun = time.monotonic()
    try:
        yield
    except BaseException:
        emit(PhaseEnded(name, time.monotonic() - begun, "failed"))
        raise
    emit(PhaseEnded(name, time.monotonic() - begun))
