"""Names for the parts of a step in a profiler's trace, and nothing at all while no profiler looks.

`training/step.py` names what it does; `runtime/trace_reading.py` adds up what lies below the names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

from torch import nn
from torch._C._autograd import _profiler_enabled
from torch.autograd.profiler import record_function

PREFIX: Final = "simpletuner/"  # tells our names from those of operations

STEP: Final = "step"
DATA: Final = "waiting for data"
MOVE: Final = "batch to the device"
FORWARD: Final = "forward"
BACKWARD: Final = "backward"
LIMIT: Final = "limiting gradients"
UPDATE: Final = "optimizer"
BESIDE: Final = "companions"
AVERAGE: Final = "running average"
REGIONS: Final = (DATA, MOVE, FORWARD, BACKWARD, LIMIT, UPDATE, BESIDE, AVERAGE)

_NOTHING: Final = nullcontext()


def region(name: str) -> AbstractContextManager[Any]:
    """Give what is done while it is open a name in the trace; costs a look at a flag while nobody profiles."""
    return record_function(PREFIX + name) if _profiler_enabled() else _NOTHING


@contextmanager
def named_modules(modules: Sequence[tuple[str, nn.Module]]) -> Iterator[None]:
    """While open, each module's forward pass has its name in the trace, also where it is computed again.

    A wrapper of `forward`, not hooks: recomputing ends early by an exception, and hooks behind it never run.
    """
    before = [module.__dict__.get("forward") for _, module in modules]
    for name, module in modules:
        module.forward = _named(name, module.forward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for (_, module), plain in zip(modules, before, strict=True):
            del module.forward
            if plain is not None:
                module.forward = plain


def _named(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
    def compute(*args: Any, **kwargs: Any) -> Any:
        with region(name):
            return forward(*args, **kwargs)

    return compute
