"""Long lists of layers, told in a line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_NUMBERED = re.compile(r"(?P<list>.*?)\.(?P<number>[0-9]+)\.(?P<rest>.+)")


def tell_layers(layers: Iterable[str]) -> str:
    """Layers grouped by the blocks they are in: "transformer_blocks 0-27: attn1 (to_q, to_k), ff (net.2); proj_in"."""
    places: dict[tuple[str, str], list[int]] = {}
    ends = []
    for name in layers:
        match = _NUMBERED.fullmatch(name)
        if match is None:
            ends.append(name)
        else:
            places.setdefault((match["list"], match["rest"]), []).append(int(match["number"]))
    alike: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for (blocks, rest), numbers in places.items():
        alike.setdefault((blocks, tuple(sorted(numbers))), []).append(rest)
    groups = [f"{blocks} {_ranges(numbers)}: {_by_part(rests)}" for (blocks, numbers), rests in alike.items()]
    return "; ".join([*groups, *([", ".join(ends)] if ends else [])])


def _ranges(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 -> "0-2, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _by_part(rests: Iterable[str]) -> str:
    parts: dict[str, list[str]] = {}
    for rest in rests:
        head, _, tail = rest.partition(".")
        parts.setdefault(head, []).append(tail)
    return ", ".join(f"{head} ({', '.join(tails)})" if any(tails) else head for head, tails in parts.items())
