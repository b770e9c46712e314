"""An interruption gets through whatever is being done."""

import os
import signal

import pytest

from qlora_space.core.interruption import Interrupted, Interruption


def _library_call() -> None:
    """As libraries do: whatever goes wrong, there is another way."""
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except Exception:
        return


def test_no_library_takes_an_interruption_for_a_failure_of_its_own() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM)
    try:
        Interruption().listen()
        with pytest.raises(Interrupted):
            _library_call()
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGALRM, before[1])
