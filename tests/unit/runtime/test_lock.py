"""Two processes never work in one run folder; a killed one frees it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from simpletuner.core.errors import UserError
from simpletuner.runtime.lock import hold_folder

HOLD = """
import sys, time
from pathlib import Path
from simpletuner.runtime.lock import hold_folder
with hold_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_told_and_a_killed_one_frees_the_folder(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == "held"
        with pytest.raises(UserError, match="another run is at work"), hold_folder(tmp_path):
            pass
        other.kill()
    with hold_folder(tmp_path):
        pass
