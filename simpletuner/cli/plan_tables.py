"""The plan of a run as tables on a terminal, as plain columns in a pipe, or as one JSON document.

Words and layout only; every number comes from `recipes/forecast.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, TextIO

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from simpletuner.cli.tell import console_for
from simpletuner.config.run_config import STARRED, RunConfig
from simpletuner.config.table import SECTIONS
from simpletuner.config.values import show
from simpletuner.core.counting import counted
from simpletuner.events.wording import told_size
from simpletuner.recipes.card_table import CardNeeds, tabulate_cards
from simpletuner.recipes.check import Checked
from simpletuner.recipes.forecast import CardForecast, Forecast
from simpletuner.recipes.memory_plan import MemoryPlan
from simpletuner.recipes.time_forecast import told_seconds

DASH = "–"
WRAPPED_CELLS, NARROWEST_CELLS = 24, 16  # texts above the first width may be wrapped, to the second at least
COLUMN_GAP = 2
VERDICTS = {"fits": "green", "tight": "yellow", "too large": "red"}


def show_plan(checked: Checked, stream: TextIO, *, everything: bool) -> None:
    """Print the whole plan; `everything` lists options at their default too."""
    console = console_for(stream)
    config, forecast = checked.config, checked.forecast
    assert config is not None
    _options(console, config, everything=everything)
    if checked.examination.config is None:
        _say(console, "The configuration has errors (below). The plan is for the run without the values they name.")
    if forecast is None:
        return
    _heading(console, "Model")
    _pairs(console, _model_lines(forecast))
    _data(console, forecast)
    _heading(console, "Length")
    _pairs(console, _length_lines(forecast, config))
    _disk(console, forecast)
    _memory(console, forecast)
    if checked.memory is not None:
        _choices(console, checked.memory)
    _card_needs(console, tabulate_cards(config, forecast.data, checked.machine))
    _time(console, forecast)
    console.print()


def option_rows(config: RunConfig, *, everything: bool) -> Iterator[tuple[str, str, str]]:
    """(name, value, origin) of the options; secrets are starred."""
    for attribute in SECTIONS:
        section = config.section(attribute)
        for name, value in section.model_dump(mode="json").items():
            origin = config.origins.get(name, "default")
            if everything or value != type(section).model_fields[name].default:
                secret = section.facts(name).secret and value is not None
                yield name, STARRED if secret else show(value), origin


def _options(console: Console, config: RunConfig, *, everything: bool) -> None:
    rows = list(option_rows(config, everything=everything))
    _heading(console, "Options" if everything else "Options that differ from their default")
    _table(console, ("option", "value", "set by"), rows)


def _model_lines(forecast: Forecast) -> list[tuple[str, str]]:
    cost, trained = forecast.cost, forecast.trained
    counts = cost.parameters
    adapter = "LyCORIS adapter" if trained.values is not None else f"LoRA of rank {trained.lora_rank}"
    what = "all weights" if trained.kind == "full" else f"{adapter} on {len(trained.targets)} layers"
    return [
        ("model", f"{cost.name} ({cost.basis})"),
        (
            "parameters",
            f"transformer {counts['transformer']:,}, autoencoder {counts['encoder'] + counts['decoder']:,}, "
            f"text encoder {counts['text']:,}",
        ),
        ("trained", f"{what}: {forecast.trained_values:,} values"),
    ]


def _data(console: Console, forecast: Forecast) -> None:
    _heading(console, "Data")
    data = forecast.data
    if data is None:
        _say(console, "there is no data set")
        return
    if data.is_assumed:
        told = ", ".join(f"{line.bucket} ({line.tokens:,} tokens)" for line in data.buckets)
        _say(console, f"the clips were not read, or cannot be trained as they are; assumed is a full batch of {told}")
        return
    rows = [
        (
            str(line.bucket), str(line.files), str(line.windows), str(line.bucket.num_frames),
            "×".join(map(str, line.latent_shape)), f"{line.tokens:,}", str(line.draws), str(line.batches),
            str(line.batch_size),
        )
        for line in data.buckets
    ]  # fmt: skip
    names = ("bucket", "files", "samples", "frames", "latents", "tokens", "draws", "batches", "of up to")
    _table(console, names, rows, numbers=range(1, 9))
    if data.evaluation:
        sets = len({sample.dataset for sample in data.evaluation})
        _say(console, f"for evaluation: {len(data.evaluation)} samples in {sets} data set{'s' if sets != 1 else ''}")
    if data.left_out_count:
        _say(console, f"left out: {data.left_out_count}")
        for line in data.left_out:
            _say(console, f"  {line}")


def _length_lines(forecast: Forecast, config: RunConfig) -> list[tuple[str, str]]:
    length, data = forecast.length, forecast.data
    lines = []
    steps = f"{length.steps:,} steps" if length.steps else "not known without the clips"
    if length.epochs is not None and data is not None:
        steps += f" = {length.epochs:,.1f} epochs of {data.steps_per_epoch} steps ({data.draws} draws)"
    lines.append(("length", steps))
    lines.append(("step", f"up to {counted(length.samples_per_step, 'clip')}"))
    interval = config.checkpoint.checkpoint_step_interval
    when = f"every {interval} steps and at the end" if interval else "at the end"
    lines.append(("checkpoints", f"{length.checkpoints}, {when}; {length.checkpoints_kept} kept"))
    told = (
        f"{length.validations} times {length.videos_each} video{'s' if length.videos_each > 1 else ''}"
        if length.validations
        else "none"
    )
    lines.append(("validation", told))
    if length.evaluations:
        clips, levels = sum(length.clips_each.values()), config.evaluation.eval_timesteps
        what = f"{counted(clips, 'clip')} at {counted(levels, 'noise level')}"
        lines.append(("evaluation loss", f"{length.evaluations} times {what}"))
    return lines


def _disk(console: Console, forecast: Forecast) -> None:
    _heading(console, "Disk")
    rows = [
        (line.what, told_size(line.size_bytes), told_size(line.present_bytes) if line.present_bytes else DASH,
         line.folder, line.detail)
        for line in forecast.disk.lines
    ]  # fmt: skip
    _table(console, ("what", "size", "there already", "folder", ""), rows, numbers=(1, 2))
    for volume in forecast.disk.volumes:
        needed, free = told_size(volume.needed_bytes), told_size(volume.free_bytes)
        _say(console, f"disk of '{volume.folder}': {needed} to write, {free} free")


def _memory(console: Console, forecast: Forecast) -> None:
    _heading(console, "Memory (estimate)")
    first = forecast.cards[0].memory
    if not first.phases:
        _say(console, "not known without the clips")
        return
    rows = []
    for phase, parts in first.phases.items():
        listed = " + ".join(f"{part} {told_size(size)}" for part, size in parts.items() if size >= 1e6)
        rows.append((phase, told_size(sum(parts.values())), listed))
    _table(console, ("phase", "together", "parts"), rows, numbers=(1,))
    verdicts = [
        (one.card.label, told_size(one.memory.limit_bytes), told_size(one.memory.peak_bytes), one.memory.peak_phase,
         one.memory.verdict)
        for one in forecast.cards
    ]  # fmt: skip
    _table(console, ("card", "memory", "needed", "by", "verdict"), verdicts, numbers=(1, 2))


def _choices(console: Console, plan: MemoryPlan) -> None:
    """What was chosen to fit the budget, one line each."""
    _heading(console, f"Chosen to fit {told_size(plan.memory.limit_bytes)}")
    for choice in plan.choices:
        _say(console, f"{choice.option} = {show(choice.value)}: {choice.why}")
    if not plan.choices:
        _say(console, "nothing: it fits as it is, or everything that could be chosen is set")
    _say(console, f"room for {plan.most_clips} clips of the largest size at once")


def _card_needs(console: Console, needs: Sequence[CardNeeds]) -> None:
    """What the same training would need on other cards."""
    if not needs:
        return
    _heading(console, "What memory_budget would choose on cards of these sizes")
    rows = [
        (
            f"{row.size_gb} GB", row.precision, "streamed" if row.streamed else "resident",
            f"{row.recomputed} of {row.blocks}", f"{row.tokens_per_pass:,} cells" if row.tokens_per_pass else "batch",
            "streamed" if row.text_streamed else "resident",
            "tiles" if row.tiled else "whole", told_size(row.peak_bytes), row.peak_phase, str(row.most_clips),
            row.verdict,
        )
        for row in needs
    ]  # fmt: skip
    names = ("card", "base", "blocks", "recomputed", "at once", "text encoder", "autoencoder", "needed", "by",
             "most clips", "")  # fmt: skip
    _table(console, names, rows, numbers=(3, 4, 7, 9))


def _time(console: Console, forecast: Forecast) -> None:
    _heading(console, "Time (estimate, nothing encoded yet)")
    _table(
        console,
        ("card", "captions", "clips", "step", "training", "validation", "its share", "evaluation", "whole run"),
        [_time_row(one) for one in forecast.cards],
        numbers=range(1, 9),
    )


def _time_row(one: CardForecast) -> tuple[str, ...]:
    times = one.times
    share = f"{times.validation_share:.0%}" if times.validation and times.training else DASH
    return (
        one.card.label, told_seconds(times.captions), told_seconds(times.clips),
        DASH if times.step is None else f"{times.step:.3g} s", told_seconds(times.training),
        told_seconds(times.validation) if times.validation else DASH, share,
        told_seconds(times.evaluation) if times.evaluation else DASH, told_seconds(times.total),
    )  # fmt: skip


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, "bold"))


def _pairs(console: Console, lines: Sequence[tuple[str, str]]) -> None:
    width = max(len(label) for label, _ in lines)
    for label, value in lines:
        console.print(Text.assemble((f"  {label:<{width}}  ", "dim"), value), soft_wrap=True)


def _say(console: Console, text: str) -> None:
    console.print(Text("  " + text), soft_wrap=True)


def _table(
    console: Console, names: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()
) -> None:
    """A table on a terminal, aligned columns elsewhere; `numbers` are columns set to the right."""
    if not console.is_terminal:
        for line in _aligned([names, *rows], numbers):
            console.print(Text(line), soft_wrap=True)
        return
    widths = [max(cell_len(row[number]) for row in [names, *rows]) for number in range(len(names))]
    for part in _parts(widths, console.width):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for number in part:
            side: Literal["left", "right"] = "right" if number in numbers else "left"
            wraps = number > 0 and widths[number] > WRAPPED_CELLS
            table.add_column(Text(names[number]), justify=side, overflow="fold", no_wrap=not wraps)
        for row in rows:
            table.add_row(*(Text(row[number], VERDICTS.get(row[number], "")) for number in part))
        console.print(table)


def _parts(widths: Sequence[int], room: int) -> list[list[int]]:
    """The columns of a table in parts that fit `room` cells, the first column in each; wide texts may be wrapped."""
    needed = [NARROWEST_CELLS if number > 0 and width > WRAPPED_CELLS else width for number, width in enumerate(widths)]
    parts = [[0]]
    for number in range(1, len(widths)):
        together = sum(needed[one] + COLUMN_GAP for one in (*parts[-1], number)) + COLUMN_GAP
        if together > room and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(number)
    return parts


def _aligned(rows: Sequence[Sequence[str]], numbers: Sequence[int]) -> Iterator[str]:
    """Rows as lines of equally wide columns."""
    widths = [max(cell_len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            " " * (width - cell_len(cell)) + cell if column in numbers else cell + " " * (width - cell_len(cell))
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  " + "  ".join(cells).rstrip()


def as_document(checked: Checked) -> dict[str, Any]:
    """The plan as JSON: sizes in bytes, times in seconds, None where something is not known."""
    config, forecast = checked.config, checked.forecast
    assert config is not None
    document: dict[str, Any] = {
        "can_start": not checked.has_errors,
        "problems": [
            {"severity": p.severity.value, "where": p.where, "what": p.what, "rule": p.rule, "fix": p.fix}
            for p in checked.problems
        ],
        "options": {
            name: {"value": value, "origin": origin} for name, value, origin in option_rows(config, everything=True)
        },
    }
    if forecast is not None:
        document.update(_forecast_document(forecast))
        document["card_sizes"] = [vars(row) for row in tabulate_cards(config, forecast.data, checked.machine)]
    if checked.memory is not None:
        document["chosen"] = [vars(choice) for choice in checked.memory.choices]
    return document


def _forecast_document(forecast: Forecast) -> dict[str, Any]:
    data, length = forecast.data, forecast.length
    return {
        "model": {
            "name": forecast.cost.name, "basis": forecast.cost.basis, "parameters": dict(forecast.cost.parameters),
            "trained_values": forecast.trained_values, "trained_layers": len(forecast.trained.targets),
        },
        "data": None if data is None else {
            "buckets": [
                {
                    "bucket": str(line.bucket), "files": line.files, "samples": line.windows,
                    "frames": line.bucket.num_frames, "latent_shape": line.latent_shape, "tokens": line.tokens,
                    "draws": line.draws, "batches": line.batches, "batch_size": line.batch_size,
                }
                for line in data.buckets
            ],
            "is_assumed": data.is_assumed, "left_out": data.left_out_count, "reasons": data.left_out,
            "captions": len(data.captions), "evaluation": len(data.evaluation),
            "batches_per_epoch": data.batches_per_epoch, "steps_per_epoch": data.steps_per_epoch,
        },
        "length": {
            "steps": length.steps, "epochs": length.epochs, "samples_per_step": length.samples_per_step,
            "checkpoints": length.checkpoints, "checkpoints_kept": length.checkpoints_kept,
            "validations": length.validations, "videos_each": length.videos_each,
            "evaluations": length.evaluations, "evaluated_clips": sum(length.clips_each.values()),
        },
        "disk": {
            "items": [
                {
                    "what": line.what, "folder": line.folder, "bytes": line.size_bytes,
                    "present_bytes": line.present_bytes,
                }
                for line in forecast.disk.lines
            ],
            "volumes": [
                {"folder": v.folder, "needed_bytes": v.needed_bytes, "free_bytes": v.free_bytes}
                for v in forecast.disk.volumes
            ],
        },
        "cards": [_card_document(one) for one in forecast.cards],
    }  # fmt: skip


def _card_document(one: CardForecast) -> dict[str, Any]:
    times, memory = one.times, one.memory
    return {
        "card": one.card.label,
        "rates": f"measured: {one.card.measured}" if one.card.measured else "estimated",
        "memory": {
            "phases": {phase: dict(parts) for phase, parts in memory.phases.items()},
            "peak_bytes": memory.peak_bytes, "limit_bytes": memory.limit_bytes, "verdict": memory.verdict,
        },
        "seconds": {
            "start": times.start, "captions": times.captions, "clips": times.clips, "step": times.step,
            "training": times.training, "validation_each": times.validation_each, "validation": times.validation,
            "evaluation": times.evaluation, "total": times.total,
        },
        "validation_share": times.validation_share,
    }  # fmt: skip
