"""Commands under names of their own (`simpletuner-train`, `simpletuner-configure`), as older guides write them."""

from __future__ import annotations

import sys

from simpletuner.cli.main import main


def main_train() -> int:
    """`simpletuner train`."""
    return main(["train", *sys.argv[1:]])


def main_configure() -> int:
    """`simpletuner configure`."""
    return main(["configure", *sys.argv[1:]])
