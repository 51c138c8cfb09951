"""Log messages: one handler, one level, and the third parties' chatter that nobody can act on left out."""

from __future__ import annotations

import logging
import sys
import warnings

from simpletuner.config.sources import log_level, process_environment

# (logger that speaks, beginning or part of its message). Each line stems from a library that reports
# an optional part we do not use; the line goes when the library stops saying it.
CHATTER = (
    ("torchao", "Failed to load"),
    ("torchao", "Skipping import of cpp extensions"),
    ("torchao", "Detected no triton"),
    ("torch.utils._pytree", "is an Enum subclass"),
    ("bitsandbytes", "kernels"),
    ("diffusers.quantizers.torchao.torchao_quantizer", "Unable to import `torchao` Tensor objects"),
    ("diffusers.models.modeling_utils", "kept in float32"),
    ("diffusers.models.modeling_utils", "float32: []"),
    ("transformers.image_processing_utils_fast", "torchvision"),
    ("comet_ml", "import comet_ml before the following modules"),
    ("torch.distributed.elastic.multiprocessing.redirects", "Redirects are currently not supported"),
)


class _Silence(logging.Filter):
    """Drops what logger `name`, or one below it, says with `part` in it."""

    def __init__(self, name: str, part: str) -> None:
        super().__init__(name)
        self._part = part

    def filter(self, record: logging.LogRecord) -> bool:
        return not (super().filter(record) and self._part in record.getMessage())


def begin_logging() -> None:
    """Set up logging as the environment asks; an unknown level is told on stderr, and a usual one is taken."""
    complaint = set_up_logging(log_level(process_environment()))
    if complaint:
        sys.stderr.write(complaint + "\n")


def set_up_logging(level: str) -> str:
    """Send log messages of `level` and above to stderr; gives a sentence when the level is unknown."""
    known = logging.getLevelName(level)
    usable = known if isinstance(known, int) else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=usable, format="%(levelname)s %(name)s: %(message)s")
    for name, part in CHATTER:
        # A logger's filter does not see what loggers below it say, our handler's does; torch has a handler of its own.
        for place in (logging.getLogger(name), *logging.getLogger().handlers):
            place.addFilter(_Silence(name, part))
    if usable > logging.DEBUG:
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"(diffusers|transformers|torch|peft)(\.|$)")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
    if isinstance(known, int):
        return ""
    return f"SIMPLETUNER_LOG_LEVEL={level} is no level; use DEBUG, INFO, WARNING or ERROR."
