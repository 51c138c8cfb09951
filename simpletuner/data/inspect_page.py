"""The page that `simpletuner data inspect` leaves: one HTML file with pictures beside it, readable offline.

Only presentation: what is shown was found, decoded and measured elsewhere (`recipes/inspect.py`).
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup, escape

from simpletuner.core.errors import Problem, Severity
from simpletuner.core.files import write_atomic
from simpletuner.data.batch_rules import LatentGrid
from simpletuner.data.buckets import draws_per_epoch, group_by_bucket
from simpletuner.data.contact_sheet import tell_window
from simpletuner.data.findings import Finding
from simpletuner.data.looks import enlargement
from simpletuner.data.sample import LeftOut, Sample, printable
from simpletuner.events.pages import open_templates

PAGE = "index.html"
TABLE = "samples.csv"
ROWS_SHOWN = 2000  # a browser stays quick; the table file has all samples
LEFT_OUT_SHOWN = 1000
FINDINGS_SHOWN = 200  # of one kind


@dataclass(frozen=True)
class PixelError:
    """How far the frames decoded from the latents are from those of the source.

    Attributes:
        mean_levels: Mean absolute difference over all pixels and frames, in levels of 255.
        worst_levels: The same of the worst frame.
        worst_frame: Its number, from 0.
        psnr_db: Peak signal-to-noise ratio over all pixels and frames.
    """

    mean_levels: float
    worst_levels: float
    worst_frame: int
    psnr_db: float


@dataclass(frozen=True)
class Card:
    """One sample with its pictures.

    Attributes:
        sample: What is trained.
        moments: Seconds in the source of the frames shown.
        rows: (label, path of the strip) of each row of frames, the source first.
        full_size: Path of the middle frame at its trained size, source and latents side by side; empty without.
        latents: "cached", or why there is nothing to decode.
        error: Pixel errors; None without latents.
        alarm: Why there are no pictures at all; empty if there are.
    """

    sample: Sample
    moments: tuple[float, ...] = ()
    rows: tuple[tuple[str, str], ...] = ()
    full_size: str = ""
    latents: str = ""
    error: PixelError | None = None
    alarm: str = ""


@dataclass(frozen=True)
class Inspection:
    """Everything the page shows.

    Attributes:
        title: Name of the run.
        samples: All samples found, before small buckets were pruned.
        trained: Names of those that are trained.
        cached: Names of those that have latents; None if nobody could look.
        cards: Samples with pictures.
        left_out: Files that are not used, with reasons.
        findings: See `findings.find_all`.
        problems: Errors that stop a run.
        notes: Sentences about the data and about this page.
        sheets: Contact sheets, paths relative to the page.
    """

    title: str
    samples: Sequence[Sample]
    trained: frozenset[str]
    cached: frozenset[str] | None
    cards: Sequence[Card]
    left_out: Sequence[LeftOut]
    findings: Sequence[Finding]
    problems: Sequence[Problem] = ()
    notes: Sequence[str] = ()
    sheets: Sequence[str] = ()
    _by_sample: dict[str, list[Finding]] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for finding in self.findings:
            for name in dict.fromkeys([*([finding.sample] if finding.sample else []), *finding.others]):
                self._by_sample.setdefault(name, []).append(finding)

    def verdicts(self, sample: Sample) -> list[Finding]:
        """Findings that concern `sample`."""
        return self._by_sample.get(sample.name, [])

    def state(self, sample: Sample) -> str:
        """Whether there are latents: "cached", "not cached", or "" if nobody could look."""
        if self.cached is None:
            return ""
        return "cached" if sample.name in self.cached else "not cached"


def write_page(inspection: Inspection, grid: LatentGrid, folder: Path) -> Path:
    """Write `index.html` and `samples.csv` into `folder`; gives the path of the page.

    Raises:
        UserError: If the disk is full or the folder cannot be written.
    """
    write_atomic(folder / TABLE, _table(inspection))
    carded = {card.sample.name for card in inspection.cards}
    rest = [sample for sample in inspection.samples if sample.name not in carded]
    page = (
        _environment()
        .get_template("inspect.html.jinja")
        .render(
            inspection=inspection,
            headline=_headline(inspection),
            tiles=_tiles(inspection),
            groups=_grouped(inspection.findings),
            findings_shown=FINDINGS_SHOWN,
            buckets=_buckets(inspection, grid),
            rest=rest[:ROWS_SHOWN],
            hidden=max(0, len(rest) - ROWS_SHOWN),
            left_out=inspection.left_out[:LEFT_OUT_SHOWN],
            left_out_hidden=max(0, len(inspection.left_out) - LEFT_OUT_SHOWN),
            kinds=sorted({finding.kind for finding in inspection.findings if finding.sample}),
            datasets=list(dict.fromkeys(sample.dataset for sample in inspection.samples)),
            anchors={sample.name: f"s{number}" for number, sample in enumerate(inspection.samples)},
            table=TABLE,
            grave=(Severity.ERROR, Severity.WARNING),
        )
    )
    write_atomic(folder / PAGE, page)
    return folder / PAGE


def _environment() -> Environment:
    environment = open_templates(Path(__file__).parent / "templates")
    environment.filters["printable"] = printable
    environment.filters["window"] = tell_window
    environment.filters["source"] = tell_source
    environment.filters["code"] = _with_code
    return environment


def _with_code(text: str) -> Markup:
    """Words between backticks as code."""
    code = Markup("<code>{}</code>")
    parts = (code.format(part) if place % 2 else escape(part) for place, part in enumerate(text.split("`")))
    return Markup("").join(parts)


def tell_source(sample: Sample) -> str:
    """Facts of the file a sample is cut from, in one line."""
    info = sample.info
    parts = [f"{info.width}×{info.height}", info.codec]
    if info.kind == "video":
        uneven = " (variable)" if info.variable_rate else ""
        parts += [f"{info.frame_rate:.4g} fps{uneven}", f"{info.num_frames} frames", f"{info.duration_seconds:.2f} s"]
    parts += [info.pixel_format] if info.pixel_format else []
    parts += [f"turned by {info.rotation}°"] if info.rotation else []
    parts += [f"pixels {info.sample_aspect:.3g}:1"] if info.sample_aspect != 1 else []
    parts += ["interlaced"] if info.interlaced else []
    parts += [f"{info.transfer}, shown in standard range"] if info.transfer else []
    scale = enlargement(sample)
    parts += [f"shown at {scale:.2f}×"]
    return " · ".join(part for part in parts if part)


def _headline(inspection: Inspection) -> str:
    files = {(sample.dataset, sample.path) for sample in inspection.samples}
    unused = {(item.dataset, item.path) for item in inspection.left_out} - files
    sets = len({sample.dataset for sample in inspection.samples})
    total = len(files) + len(unused)
    return (
        f"{len(inspection.samples)} {_plural(len(inspection.samples), 'sample')} from {len(files)} of {total} "
        f"{_plural(total, 'file')} in {sets} {_plural(sets, 'data set')}. What you see is what is trained: frames "
        "after crop and resampling, beside the same frames decoded from the cached latents."
    )


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"


def _tiles(inspection: Inspection) -> list[tuple[str, str, str, str]]:
    """(label, value, note, severity) of the figures at the top."""
    samples, cached = inspection.samples, inspection.cached
    captions = {caption for sample in samples for caption in sample.captions}
    draws = draws_per_epoch([sample for sample in samples if sample.name in inspection.trained])
    grave = sum(finding.severity is not Severity.NOTE for finding in inspection.findings)
    errors = [card.error.mean_levels for card in inspection.cards if card.error]
    tiles = [
        ("Trained", str(len(inspection.trained)), f"of {len(samples)} samples, {draws} draws per epoch", ""),
        ("Left out", str(len(inspection.left_out)), "files or parts of files", "warn" if inspection.left_out else ""),
        ("Captions", str(len(captions)), "different ones", ""),
    ]
    if cached is not None:
        tiles.append(("Latents", f"{len(cached)}", f"of {len(samples)} cached", "" if cached else "warn"))
    if errors:
        tiles.append(("Pixel error", f"{sum(errors) / len(errors):.1f}", "levels of 255, mean of those shown", ""))
    tiles.append(
        ("To look at", str(grave), "warnings below" if grave else "nothing found", "warn" if grave else "good")
    )
    return tiles


def _grouped(findings: Sequence[Finding]) -> list[tuple[str, Severity, str, list[Finding]]]:
    """(kind, gravest severity, fix, findings) per kind, in order of gravity."""
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.kind, []).append(finding)
    return [(kind, members[0].severity, members[0].fix, members) for kind, members in groups.items()]


def _buckets(inspection: Inspection, grid: LatentGrid) -> list[Mapping[str, object]]:
    """One row per bucket with its totals."""
    rows: list[Mapping[str, object]] = []
    largest = max(Counter(sample.bucket for sample in inspection.samples).values(), default=1)
    for bucket, members in group_by_bucket(inspection.samples).items():
        shape = grid.latent_shape(bucket.width, bucket.height, bucket.num_frames)
        trained = [sample for sample in members if sample.name in inspection.trained]
        rows.append(
            {
                "name": str(bucket),
                "samples": len(members),
                "share": round(100 * len(members) / largest),
                "draws": draws_per_epoch(trained),
                "shape": "×".join(map(str, shape)),
                "tokens": shape[1] * shape[2] * shape[3],
                "rates": ", ".join(
                    f"{rate:.4g}" for rate in sorted({round(sample.frames.frame_rate, 3) for sample in members})
                ),
                "cached": sum(inspection.state(sample) == "cached" for sample in members),
                "trained": bool(trained),
            }
        )
    return rows


def _table(inspection: Inspection) -> str:
    """All samples as comma-separated values, for other programs."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(
        ["dataset", "path", "part", "bucket", "start_seconds", "frames", "frame_rate", "source_width", "source_height",
         "source_frame_rate", "source_frames", "enlargement", "trained", "latents", "findings", "caption"]
    )  # fmt: skip
    for sample in inspection.samples:
        plan, info = sample.frames, sample.info
        kinds = ";".join(dict.fromkeys(finding.kind for finding in inspection.verdicts(sample)))
        writer.writerow(
            [sample.dataset, sample.path, sample.part, sample.bucket, f"{plan.start_seconds:.3f}", plan.num_frames,
             f"{plan.frame_rate:.6g}", info.width, info.height, f"{info.frame_rate:.6g}", info.num_frames,
             f"{enlargement(sample):.3f}", "yes" if sample.name in inspection.trained else "no",
             inspection.state(sample), kinds, sample.captions[0]]
        )  # fmt: skip
    return text.getvalue()
