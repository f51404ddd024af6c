import os
import signal
import sys

import pytest

from flowjax.training import Preemption


def test_signal_is_noted_and_the_old_handler_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        assert not preemption.reached(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.reached(2)
    assert signal.getsignal(signal.SIGTERM) == before


def test_ctrl_c_is_noted_and_a_second_one_ends_the_process(capfd, monkeypatch):
    monkeypatch.setattr(os, "_exit", sys.exit)
    before = signal.getsignal(signal.SIGINT)
    with Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGINT)
        assert preemption.reached(1)
        assert preemption.cause == "Ctrl-C"
        with pytest.raises(SystemExit, match="130"):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before
    assert capfd.readouterr().err.splitlines() == [
        "Ctrl-C: saving after this step; a second one stops at once",
        "stopped at once",
    ]


def test_ctrl_c_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Preemption() as preemption:
            os.kill(os.getpid(), signal.SIGINT)
            assert not preemption.reached(1)
    finally:
        signal.signal(signal.SIGINT, before)
