"""One signal asks, a second insists; wishes wait until they are granted; earlier handlers come back."""

from __future__ import annotations

import os
import signal

import pytest

from simpletuner.runtime.signals import listen_to_signals


def test_the_first_signal_asks_and_the_second_insists() -> None:
    told: list[str] = []
    earlier = signal.getsignal(signal.SIGTERM)
    with listen_to_signals(told.append) as stop:
        with pytest.raises(KeyboardInterrupt) as caught:
            os.kill(os.getpid(), signal.SIGTERM)
        assert caught.value.args == (signal.SIGTERM,)  # for the exit code
        assert not stop()
        stop.patient = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        assert stop.signal_number == signal.SIGTERM
        assert len(told) == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == earlier


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no signals to wish with")
def test_wishes_are_noted_once_and_granted_once() -> None:
    told: list[str] = []
    earlier = signal.getsignal(signal.SIGUSR1)
    with listen_to_signals(told.append) as requests:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGUSR1)
        assert requests.has_wishes
        assert not requests()
        assert not requests.take("validate")
        assert requests.take("save")
        assert not requests.take("save")
        os.kill(os.getpid(), signal.SIGUSR2)
        assert requests.take("validate")
        assert not requests.has_wishes
        assert [text.split()[0] for text in told] == ["Saving", "Saving", "Making"]
    assert signal.getsignal(signal.SIGUSR1) == earlier
