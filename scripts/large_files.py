"""Refuse files that are too large for the repository: media, weights and caches live outside."""

from __future__ import annotations

import sys
from pathlib import Path

LIMIT_BYTES = 512 * 1024
# The one exception: the demo's model, which the package ships (12 MB in all, see tests/unit/models/test_demo_model.py).
SHIPPED = "simpletuner/demo_model/"


def main(names: list[str]) -> int:
    """Name each file above the limit; returns 1 if there is one."""
    large = [(name, Path(name).stat().st_size) for name in names if Path(name).is_file() and SHIPPED not in name]
    large = [(name, size) for name, size in large if size > LIMIT_BYTES]
    for name, size in large:
        print(f"{name}: {size / 1024:.0f} KiB; the limit is {LIMIT_BYTES // 1024} KiB")
    return 1 if large else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
