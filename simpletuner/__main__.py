"""`python -m simpletuner` is the same as `simpletuner`."""

from __future__ import annotations

import sys

from simpletuner.cli.main import main

sys.exit(main())
