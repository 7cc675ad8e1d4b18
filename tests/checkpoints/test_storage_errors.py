"""Errors of the storage, and what is printed of them."""

import asyncio
import logging
import threading

import pytest
import tensorstore as ts

from semiovs_jax.checkpoints import storage_errors
from semiovs_jax.checkpoints.storage_errors import hide_repetitions, refusal

FULL = ValueError("RESOURCE_EXHAUSTED: Failed to write 9 bytes to file 4: x [os_error_code='28']")


@pytest.fixture
def unraisable(monkeypatch):
    """Hides repetitions for one test; what Python prints otherwise of errors that nobody can catch."""
    seen = []
    monkeypatch.setattr(storage_errors.sys, "unraisablehook", seen.append)
    hide_repetitions()
    return seen


def test_a_full_disk_in_the_words_of_tensorstore():
    assert refusal(FULL) == "No space left on device"
    assert refusal(ValueError("another fault")) is None


def test_event_loops_do_not_log_an_error_that_is_raised_too():
    hide_repetitions()
    assert not logging.getLogger("asyncio").filter(logging.makeLogRecord({"exc_info": (ValueError, FULL, None)}))


def test_the_thread_of_an_array_that_ends_after_the_error_prints_nothing(unraisable):
    promise, future = ts.Promise.new()
    tasks = set()

    async def wait():
        return await future

    async def fail():
        tasks.add(asyncio.ensure_future(wait()))
        await asyncio.sleep(0)
        raise ValueError("of another array")

    loop = asyncio.new_event_loop()
    with pytest.raises(ValueError, match="of another array"):
        loop.run_until_complete(fail())
    loop.close()
    thread = threading.Thread(target=promise.set_result, args=(1,))
    thread.start()
    thread.join()
    assert not unraisable


def test_other_errors_that_nobody_can_catch_are_printed(unraisable):
    class Faulty:
        def __del__(self):
            raise RuntimeError("Event loop is closed")

    Faulty()
    assert [str(error.exc_value) for error in unraisable] == ["Event loop is closed"]
