"""Whether products in 8 bits are faster than those in 16 here, at the run's own sizes: measured once and told.

Nothing is chosen by it: what a run computes with is what its configuration says, on every machine and at every start.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from simpletuner.config.catalogs.precisions import PRECISIONS
from simpletuner.config.run_config import RunConfig
from simpletuner.data.batch_rules import group_samples
from simpletuner.data.sample import Sample
from simpletuner.events.types import Event, Noticed
from simpletuner.models.family import ModelFamily
from simpletuner.recipes.pace import RATES_FILE
from simpletuner.recipes.survey import batch_rules
from simpletuner.runtime.host import Host
from simpletuner.runtime.matrix_rate import remember, told_machine, wait_for

_SECONDS: Final = 0.3
_NEAR: Final = 0.03  # differences below this are the clock's


def tell_products(
    config: RunConfig,
    family: ModelFamily,
    samples: Sequence[Sample],
    width: int,
    host: Host,
    folder: Path,
    emit: Callable[[Event], None],
) -> None:
    """Tell what products in the base's own format take of bfloat16's; nothing where only its weights are in 8 bits.

    Args:
        config: The run's configuration.
        family: Its model.
        samples: Those that are trained; the largest batch of them is measured.
        width: Of the model.
        host: Where it computes.
        folder: The run's own, where the figures are kept.
        emit: Receives what was found.
    """
    precision = config.precision.base_model_precision
    row = PRECISIONS[precision]
    if not row.multiplies:
        return
    tokens = largest_pass(config, family, samples)
    facts = f"{told_machine(host.device_name)}, {tokens} x {width}, {torch.__version__}"
    own, widened = remember(
        [f"{name} / bfloat16, {facts}" for name in (precision, row.weight_only)],
        lambda: measure_products(precision, tokens, width, host.device),
        folder / RATES_FILE,
    )
    emit(told_products(precision, own, widened, tokens, width, compiles=config.model.dynamo_backend == "inductor"))


def told_products(
    precision: str, own: float, widened: float, tokens: int, width: int, *, compiles: bool = False
) -> Noticed:
    """What two measurements mean.

    Args:
        precision: Of the base.
        own, widened: Time that its products take, and that widening its weights and multiplying in bfloat16 takes, as
            shares of the time of bfloat16's.
        tokens, width: What was measured.
        compiles: Whether the run's blocks are compiled; what is measured is not, for that would take longer.
    """
    row = PRECISIONS[precision]
    told = f"products in {row.multiplies} take {own:.2f} of bfloat16's time here ({tokens:,} tokens x {width:,})"
    if own > widened + _NEAR:
        advice = f"base_model_precision {row.weight_only} keeps the weights as small and takes {widened:.2f}"
        if compiles:
            return Noticed("note", f"{told}; {advice}. Compiled blocks, as here, round and scale for much less")
        return Noticed("warning", f"{told}; {advice}. With dynamo_backend inductor rounding and scaling cost much less")
    if own > 1 + _NEAR:
        return Noticed("note", f"{told}; only an unquantized base is faster (base_model_precision no_change)")
    return Noticed("note", told)


def largest_pass(config: RunConfig, family: ModelFamily, samples: Sequence[Sample]) -> int:
    """Tokens of the largest batch, or of what goes through the model at once where that is limited."""
    tokens = 0
    for group in group_samples(samples, batch_rules(config)):
        bucket = group.bucket
        clip = math.prod(family.grid.latent_shape(bucket.width, bucket.height, bucket.num_frames)[1:])
        limit = config.memory.max_tokens_per_pass
        clips = group.capacity if limit is None else min(group.capacity, max(limit // clip, 1))
        tokens = max(tokens, clips * clip)
    return tokens


def measure_products(
    precision: str, tokens: int, width: int, device: torch.device, seconds: float = _SECONDS
) -> tuple[float, float]:
    """Time of a square layer's product and of its input's gradient, as shares of bfloat16's.

    Args:
        precision: A name of the catalog that multiplies in 8 bits.
        tokens, width: The input is [tokens, width], the weight [width, width].
        device: Where to compute.
        seconds: That it shall take; every kind is measured at least twice, and its shortest time counts.

    Returns:
        (in the precision's own format, with weights that are widened to bfloat16 for both products).
    """
    from simpletuner.models.precision.row_products import FORMATS, multiply_rows, round_rows

    dtype = FORMATS[PRECISIONS[precision].multiplies]
    draw = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, width, generator=draw).bfloat16().to(device) for rows in (tokens, width))
    numbers, scales = round_rows(weight, dtype)
    flat = scales[:, 0].contiguous()

    def narrow() -> Tensor:
        there = multiply_rows(*round_rows(x, dtype), numbers.t(), flat, None, x.dtype)
        return multiply_rows(*round_rows(there, dtype, flat), numbers, None, None, x.dtype)

    def widened() -> Tensor:
        full = numbers.to(x.dtype).mul_(scales.to(x.dtype))
        return x @ full.t() @ full

    def plain() -> Tensor:
        return x @ weight.t() @ weight

    kinds = (narrow, widened, plain)
    best = [math.inf] * len(kinds)
    with torch.no_grad():
        for work in kinds:
            work()
        started, rounds = time.perf_counter(), 0
        while rounds < 2 or time.perf_counter() - started < seconds:
            for number, work in enumerate(kinds):
                wait_for(device)
                begun = time.perf_counter()
                work()
                wait_for(device)
                best[number] = min(best[number], time.perf_counter() - begun)
            rounds += 1
    return best[0] / best[2], best[1] / best[2]
