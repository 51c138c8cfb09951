"""`simpletuner evaluate`: the loss of finished weights on clips that are never trained."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from simpletuner.cli.logs import begin_logging
from simpletuner.cli.progress import loading_libraries
from simpletuner.cli.tell import console_for
from simpletuner.config.resolve import resolve_config
from simpletuner.config.sources import process_environment
from simpletuner.core.errors import ExitCode

if TYPE_CHECKING:
    from simpletuner.recipes.evaluate import Evaluation

USAGE = """\
usage: simpletuner evaluate [base | FILE[:STRENGTH] …] [--json] [the arguments of `simpletuner train`]

Measures the loss of weights on the data sets with `dataset_type` eval of a configuration: the same clips, noise and
noise levels as while training, so that the numbers can be compared with the run's own. Without a name everything in
output_dir is measured: the base model, each checkpoint, the last weights, their average and the best ones.

  base             the model without an adapter
  FILE[:STRENGTH]  an adapter file, run folder, checkpoint or transformer folder
  --json           one JSON document, with the loss at each noise level

The lowest loss is not always the best video: it tells how well the clips set apart are predicted.
Where a training set trains image-to-video, they are measured twice: as text-to-video, and (a series ending in /i2v)
with their first frame given.
"""
BANDS = 4


def run(words: list[str]) -> int:
    """Measure; gives the exit code."""
    if "-h" in words or "--help" in words:
        sys.stdout.write(USAGE)
        return ExitCode.OK
    begin_logging()
    parser = argparse.ArgumentParser("simpletuner evaluate", allow_abbrev=False, add_help=False)
    parser.add_argument("--json", action="store_true")
    own, rest = parser.parse_known_args(words)
    places: list[str] = []
    while rest and not rest[0].startswith("-") and "=" not in rest[0]:
        places.append(rest.pop(0))
    config = resolve_config(rest, process_environment(), Path.cwd())
    from simpletuner.events.sinks.console import ConsoleSink

    with loading_libraries():
        from simpletuner.recipes.evaluate import evaluate_candidates, find_candidates

    candidates = find_candidates(places, Path(config.checkpoint.output_dir))
    sink = ConsoleSink(Path(config.checkpoint.output_dir), console_for(sys.stderr) if own.json else None)
    try:
        found = evaluate_candidates(config, candidates, lambda event: sink.receive(event, 0))
    finally:
        sink.close()
    if own.json:
        document = [evaluation.as_document() for evaluation in found]
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    else:
        _tell(found)
    return ExitCode.OK


def _tell(found: Sequence[Evaluation]) -> None:
    console = console_for(sys.stdout)
    series = list(found[0].found.losses)
    table = Table(box=None, pad_edge=False)
    bands = [f"{band / BANDS:.2f}-{(band + 1) / BANDS:.2f}" for band in range(BANDS)]
    lowest = min(evaluation.found.loss for evaluation in found)
    for number, name in enumerate(["weights", "loss", *(series if len(series) > 1 else []), *bands]):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for evaluation in found:
        losses = evaluation.found.losses
        figures = [evaluation.found.loss, *(losses.values() if len(series) > 1 else ()), *_by_band(evaluation)]
        cells = [evaluation.name, *(f"{figure:.4f}" for figure in figures)]
        table.add_row(*cells, style="bold" if evaluation.found.loss == lowest else None)
    console.print(table)


def _by_band(evaluation: Evaluation) -> list[float]:
    """Mean loss in four equal bands of noise levels, over all series; not a number for a band without levels."""
    means = []
    for band in range(BANDS):
        values = [
            value
            for levels in evaluation.found.by_level.values()
            for sigma, value in zip(evaluation.found.sigmas, levels, strict=True)
            if min(int(sigma * BANDS), BANDS - 1) == band
        ]
        means.append(sum(values) / len(values) if values else float("nan"))
    return means
