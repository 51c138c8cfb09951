"""Which sinks a configuration asks for, and whether their packages are installed. Imports none of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from simpletuner.config.catalogs.sinks import SINKS, TRACKERS
from simpletuner.config.publishing_file import PublishingPlace
from simpletuner.config.sections.reporting import ReportingSection, tracker_names
from simpletuner.config.webhook_file import Webhook
from simpletuner.core.errors import Problem


def chosen_sinks(
    reporting: ReportingSection, webhooks: tuple[Webhook, ...] = (), places: tuple[PublishingPlace, ...] = ()
) -> tuple[str, ...]:
    """Names of the remote sinks that are asked for, in the order of the catalog.

    `report_to` "all" means every tracker whose package is installed.
    """
    named = tracker_names(reporting.report_to)
    taken = {name for name in TRACKERS if "all" in named and is_installed(name) and not SINKS[name].on_request}
    wanted = taken | {name for name in TRACKERS if name in named}
    if webhooks:
        wanted.add("webhook")
    if reporting.push_to_hub or reporting.push_checkpoints_to_hub:
        wanted.add("hub")
    if places:
        wanted.add("s3")
    return tuple(name for name in SINKS if name in wanted)


def is_installed(name: str) -> bool:
    """Whether the package that the sink `name` needs is on this machine."""
    package = SINKS[name].package
    return not package or importlib.util.find_spec(package) is not None


def missing_packages(
    reporting: ReportingSection, where: str = "report_to", places: tuple[PublishingPlace, ...] = ()
) -> Iterator[Problem]:
    """A problem for each tracker or place that is asked for and whose package is not installed.

    Args:
        reporting: The options about who is told.
        where: Place of `report_to`, for the message.
        places: Where results are published beside the Hub.
    """
    if places and not is_installed("s3"):
        extra = SINKS["s3"].extra
        yield Problem(
            f"publishing_config: the package '{SINKS['s3'].package}' is not installed",
            f"It comes with the extra '{extra}'",
            f"pip install 'simpletuner[{extra}]', or remove publishing_config",
            "publishing_config",
        )
    for name in TRACKERS:
        if name in tracker_names(reporting.report_to) and not is_installed(name):
            extra = SINKS[name].extra
            yield Problem(
                f"report_to = {name}: the package '{SINKS[name].package}' is not installed",
                f"It comes with the extra '{extra}'",
                f"pip install 'simpletuner[{extra}]', or take {name} out of report_to",
                where,
            )
