"""Packages that only some places need: imported when such a place is used, named with their extra when missing."""

from __future__ import annotations

import importlib
from typing import Any

from simpletuner.core.errors import UserError


def need_package(module: str, extra: str, purpose: str) -> Any:
    """Import and return `module`.

    Args:
        module: Dotted name of the module ("pyarrow.parquet").
        extra: Extra of this program that installs it.
        purpose: What needs it, for the message ("a data set of type 'aws'").
    Raises:
        UserError: If the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise UserError(
            f"the package '{package}' is not installed",
            f"{purpose} needs it",
            f"Run: pip install 'simpletuner[{extra}]'",
        ) from error
