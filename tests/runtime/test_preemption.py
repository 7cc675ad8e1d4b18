import signal
from collections.abc import Iterator

import pytest

from semiovs_jax.runtime.preemption import Preemption


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Python's own SIGINT handler, which a process that a shell put into the background lacks."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noticed_at_the_next_step(number):
    before = signal.getsignal(number)
    with Preemption() as preemption:
        assert not preemption.reached(1)
        signal.raise_signal(number)
        assert preemption.reached(2)
        assert preemption.reached(3)
    assert signal.getsignal(number) == before


def test_a_second_interrupt_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with Preemption() as preemption:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert preemption.reached(1)
    assert signal.getsignal(signal.SIGINT) == before


def test_repeated_sigterm_does_not_kill_the_save():
    with Preemption() as preemption:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert preemption.reached(1)
