import signal

import pytest

from semiovs_jax.preemption import Preemption


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
