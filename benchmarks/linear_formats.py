"""What a frozen linear layer with a LoRA costs in each storage format, forward and backward.

    python benchmarks/linear_formats.py            # prints a table
    python benchmarks/linear_formats.py --compiled # each layer through torch.compile
    python benchmarks/linear_formats.py --write    # also benchmarks/linear_formats_<machine>_<yyyymm>.md

A square layer with bias and a rank-16 LoRA in bfloat16; the gradient goes to its input and to the LoRA. Every format
takes its turn in each round, in one process and one thread; the figure is the median, in CPU milliseconds, and its
share of bfloat16's. gpu.sh measures the same on a card.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from simpletuner.models.precision.quantize import open_storage, quiet_libraries
from simpletuner.runtime.matrix_rate import wait_for

LORA_RANK = 16
FORMATS = ("bf16", "int8-torchao", "int8dq-torchao", "fp8-torchao", "fp8-native")
SIZES = ((672, 768), (2688, 2048))  # tokens, width
ROUNDS = 15


def measure_formats(
    tokens: int,
    width: int,
    device: torch.device,
    clock: Callable[[], float],
    rounds: int = ROUNDS,
    repeats: int = 1,
    compiled: bool = False,
) -> dict[str, float]:
    """Median seconds of one pass there and back, by format.

    Args:
        tokens, width: The input is [1, tokens, width].
        device: Where to compute.
        clock: Seconds; of the processor, or of the wall where a card computes.
        rounds: Each holds every format once.
        repeats: Passes between two looks at the clock.
        compiled: Whether each layer is compiled; that belongs to the first round.
    """
    generator = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(1, tokens, width, generator=generator).bfloat16().to(device) for _ in range(2))
    layers = {name: _layer(name, width, device) for name in FORMATS}
    if compiled:
        for layer in layers.values():
            layer.compile()
    found: dict[str, list[float]] = {name: [] for name in FORMATS}
    for number in range(rounds + 1):
        for name, layer in layers.items():
            wait_for(device)
            started = clock()
            for _ in range(repeats):
                _there_and_back(layer, x, gradient)
            wait_for(device)
            if number:  # the first round warms up
                found[name].append((clock() - started) / repeats)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def _layer(name: str, width: int, device: torch.device) -> nn.Module:
    torch.manual_seed(1)
    plain = nn.Linear(width, width).bfloat16().to(device).requires_grad_(False)
    holder = nn.ModuleDict({"layer": plain if name == "bf16" else open_storage(name).quantize(plain)})
    with quiet_libraries():
        inject_adapter_in_model(LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=["layer"]), holder)
    return holder["layer"]


def _there_and_back(layer: nn.Module, x: Tensor, gradient: Tensor) -> None:
    layer(x.requires_grad_()).backward(gradient)
    x.grad = None
    for parameter in layer.parameters():
        parameter.grad = None


def table(sizes: Sequence[tuple[int, int]], compiled: bool) -> str:
    """Markdown, a row for each format."""
    columns = [measure_formats(*size, torch.device("cpu"), time.process_time, compiled=compiled) for size in sizes]
    heads = " | ".join(f"{tokens:,} x {width:,}, ms | share" for tokens, width in sizes)
    lines = [f"| format | {heads} |", "|---" * (1 + 2 * len(sizes)) + "|"]
    for name in FORMATS:
        cells = " | ".join(f"{1e3 * column[name]:.1f} | {column[name] / column['bf16']:.2f}" for column in columns)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def main() -> int:
    """Measure, print and, if asked, keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the table beside this file")
    parser.add_argument("--compiled", action="store_true", help="compile each layer")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    facts = f"{LORA_RANK=}, torch {torch.__version__}, one thread, median of {ROUNDS} rounds"
    made = f"{table(SIZES, arguments.compiled)}\n\n{facts}\n"
    print(made)
    if arguments.write:
        now = datetime.datetime.now(datetime.timezone.utc)
        name = f"linear_formats_{platform.machine()}_{now:%Y%m}.md"
        command = f"python benchmarks/linear_formats.py {' '.join(sys.argv[1:])}"
        told = f"# Linear layers by storage format\n\n    {command}\n\n{made}"
        (Path(__file__).parent / name).write_text(told, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
