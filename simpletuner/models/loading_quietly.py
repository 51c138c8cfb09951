"""Loading with Transformers without its own progress bars: the terminal belongs to the event sinks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from transformers.utils import logging as transformers_logging


@contextlib.contextmanager
def progress_bars_hidden() -> Iterator[None]:
    """Keep Transformers' own bars off the terminal, which belongs to the event sinks."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
