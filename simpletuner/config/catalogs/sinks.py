"""Who is told what happens: one row per sink.

`target` names a callable that gives a `Sink` (see `events/sink.py`). It takes the run folder where
the row is not `remote`, and a `SinkContext` where it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from simpletuner.core.catalog import Catalog


@dataclass(frozen=True)
class SinkRow:
    """One receiver of events.

    Attributes:
        target: Code behind the row, "package.module:attribute".
        summary: What it does with events, one line.
        durable: Whether the run must stop when it cannot write; every other sink is switched off
            with a warning instead.
        remote: Whether it is opened only when the configuration asks for it, works on a thread of its
            own, and may itself have something to tell.
        tracker: Whether `report_to` names it.
        on_request: Whether only its own name asks for it, not `all`.
        package: Module that must be installed; empty when none is needed beyond the program's own.
        extra: Extra that brings the package.
    """

    target: str
    summary: str
    durable: bool = False
    remote: bool = False
    tracker: bool = False
    on_request: bool = False
    package: str = ""
    extra: str = ""


# The order is the order of delivery: an event is in the journal before anybody else hears of it.
SINKS: Catalog[SinkRow] = Catalog(
    "sink",
    {
        "journal": SinkRow(
            "simpletuner.events.sinks.journal:JournalSink", "every event, one JSON line each", durable=True
        ),
        "metrics": SinkRow("simpletuner.events.sinks.metrics:MetricsSink", "one JSON line per optimizer step"),
        "evaluations": SinkRow(
            "simpletuner.events.sinks.evaluations:EvaluationsSink", "one JSON line per measurement of the loss"
        ),
        "console": SinkRow("simpletuner.events.sinks.console:ConsoleSink", "the story and progress on the terminal"),
        "simpletuner": SinkRow(
            "simpletuner.events.sinks.local_tracker:local_sink", "numbers and videos as files for other programs",
            remote=True, tracker=True,
        ),
        "tensorboard": SinkRow(
            "simpletuner.events.sinks.tensorboard:tensorboard_sink", "curves and poster pictures for TensorBoard",
            remote=True, tracker=True, package="tensorboard", extra="tensorboard",
        ),
        "wandb": SinkRow(
            "simpletuner.events.sinks.wandb:wandb_sink", "curves, settings and videos for Weights & Biases",
            remote=True, tracker=True, package="wandb", extra="wandb",
        ),
        "comet_ml": SinkRow(
            "simpletuner.events.sinks.comet:comet_sink", "curves, settings and videos for Comet",
            remote=True, tracker=True, package="comet_ml", extra="comet",
        ),
        "custom-tracker": SinkRow(
            "simpletuner.events.sinks.custom_tracker:custom_sink", "settings and numbers for a class of one's own",
            remote=True, tracker=True, on_request=True,
        ),
        "webhook": SinkRow(
            "simpletuner.events.sinks.webhook:WebhookSink", "messages to Discord and to addresses of one's own",
            remote=True,
        ),
        "s3": SinkRow(
            "simpletuner.events.sinks.s3:S3Sink", "the same as to the Hub, to buckets of S3-compatible stores",
            remote=True, package="boto3", extra="s3",
        ),
        "hub": SinkRow(
            "simpletuner.events.sinks.hub:hub_sink", "adapter, model card, videos and checkpoints to the Hub",
            remote=True,
        ),
    },
)  # fmt: skip

LOCAL_SINKS: tuple[str, ...] = tuple(name for name in SINKS if not SINKS[name].remote)
TRACKERS: tuple[str, ...] = tuple(name for name in SINKS if SINKS[name].tracker)
