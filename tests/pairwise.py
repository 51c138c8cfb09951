"""Rows of choices in which every allowed pair of choices occurs together."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence

Row = dict[str, str]
Pair = tuple[tuple[str, str], tuple[str, str]]  # (dimension, choice), twice, in the order of the dimensions


def all_pairs(dimensions: Mapping[str, Sequence[str]]) -> list[Pair]:
    """Every pair of choices of two dimensions."""
    return [
        ((one, a), (other, b))
        for one, other in itertools.combinations(dimensions, 2)
        for a in dimensions[one]
        for b in dimensions[other]
    ]


def pairs_of(row: Row) -> set[Pair]:
    """The pairs a row covers."""
    return set(itertools.combinations(row.items(), 2))


def cover(
    dimensions: Mapping[str, Sequence[str]],
    allowed: Callable[[Pair], bool],
    fits: Callable[[Row], bool] = lambda row: True,
    tries: int = 40,
) -> list[Row]:
    """A small list of rows that together hold every allowed pair and no other; the same each time.

    Greedy: each row begins with a pair that is still missing, and of some ways to fill it up the one with the
    most missing pairs is taken.

    Args:
        dimensions: Names and their choices.
        allowed: Whether a pair may occur.
        fits: Whether a row, perhaps not complete, may be, beyond its pairs.
        tries: Ways to fill up a row among which the best is taken.

    Raises:
        ValueError: If an allowed pair cannot be completed to a row without a pair that is not allowed.
    """
    drawn = random.Random(0)
    refused = {pair for pair in all_pairs(dimensions) if not allowed(pair)}
    missing = set(all_pairs(dimensions)) - refused
    rows: list[Row] = []
    for seed_pair in [pair for pair in all_pairs(dimensions) if pair not in refused]:
        if seed_pair not in missing:
            continue
        filled = [
            row
            for _ in range(tries)
            if (
                row := _fill(
                    dimensions, seed_pair, lambda row: fits(row) and not pairs_of(row) & refused, missing, drawn
                )
            )
        ]
        if not filled:
            raise ValueError(f"{seed_pair} fits no row")
        best = max(filled, key=lambda row: len(pairs_of(row) & missing))
        missing -= pairs_of(best)
        rows.append(best)
    return rows


def _fill(
    dimensions: Mapping[str, Sequence[str]],
    begun: Pair,
    fits: Callable[[Row], bool],
    missing: set[Pair],
    drawn: random.Random,
) -> Row | None:
    """One way to complete a row, or None where it leads nowhere."""
    row = dict(begun)
    open_dimensions = [name for name in dimensions if name not in row]
    drawn.shuffle(open_dimensions)
    for name in open_dimensions:
        scored = []
        for choice in dimensions[name]:
            candidate = {key: choice if key == name else row[key] for key in dimensions if key == name or key in row}
            if fits(candidate):
                scored.append((len(pairs_of(candidate) & missing), drawn.random(), choice))
        if not scored:
            return None
        row[name] = max(scored)[2]
    return {name: row[name] for name in dimensions}
