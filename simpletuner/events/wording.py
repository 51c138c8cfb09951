"""Numbers and events as people read them, for the terminal, chats and the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simpletuner.events.types import MemoryMeasured, RolledBack, StepSkipped

_NAMED_SAMPLES = 8


def told_duration(seconds: float) -> str:
    """Such as "0.4 s", "2 min 13 s", "4 h 05 min", "3 d 02 h"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02d} h"


def told_size(size_bytes: float) -> str:
    """Such as "512 B", "3.1 MB", "12.4 GB" (powers of 1000)."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.1f} {unit}"
    return f"{size_bytes:.0f} B"


def told_rate(per_second: float, unit: str) -> str:
    """Such as "4.2 clips/s", or "3.1 s/step" when one takes longer than a second."""
    if per_second <= 0:
        return ""
    if per_second >= 1:
        return f"{per_second:.1f} {unit}/s"
    return f"{1 / per_second:.1f} s/{unit.removesuffix('s')}"


def told_pace(steps: float, clips: float, tokens: float) -> str:
    """Rates per second, such as "0.83 it/s, 1.66 clips/s, 558 tokens/s"; of slow steps "14.2 s/it"."""
    rate = f"{steps:.2f} it/s" if steps >= 0.1 or steps <= 0 else f"{1 / steps:.1f} s/it"
    return f"{rate}, {clips:.2f} clips/s, {tokens:,.0f} tokens/s"


def told_memory(event: MemoryMeasured) -> str:
    """What a phase took and what was expected."""
    told = f"Memory of {event.phase} ({event.what}): {told_size(event.measured_bytes)}"
    if not event.forecast_bytes:
        return told
    off = event.forecast_bytes / event.measured_bytes - 1 if event.measured_bytes else 0.0
    return f"{told}, forecast {told_size(event.forecast_bytes)} ({off:+.0%}), of {told_size(event.limit_bytes)}"


def told_skip(event: StepSkipped) -> str:
    """Why a step was passed over, and which samples were in it."""
    more = f" and {len(event.samples) - _NAMED_SAMPLES} more" if len(event.samples) > _NAMED_SAMPLES else ""
    return f"step {event.step} was skipped: {event.reason}, with {', '.join(event.samples[:_NAMED_SAMPLES])}{more}"


def told_rollback(event: RolledBack) -> str:
    """From where to where a run went back, and what comes next."""
    return (
        f"{event.reason}; the run goes back from step {event.step} to step {event.to_step} ({event.path}) and on with "
        "the clips that come next"
    )
