"""One signal asks, a second insists, and earlier handlers come back."""

from __future__ import annotations

import os
import signal

import pytest

from simpletuner.runtime.signals import stop_on_signals


def test_the_first_signal_asks_and_the_second_insists() -> None:
    told: list[str] = []
    earlier = signal.getsignal(signal.SIGTERM)
    with stop_on_signals(told.append) as stop:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        assert not stop()
        stop.patient = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        assert stop.signal_name == "SIGTERM"
        assert len(told) == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == earlier
