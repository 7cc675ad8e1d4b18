"""The batch iterator. Threads or worker processes make the batches ahead of time."""

import contextlib
import os
import queue
import signal
import threading
import weakref
from typing import Any

import grain
from absl import flags

from data_pipelines.errors import InputError
from data_pipelines.loading.worker_log import BadRecords, HeldRecords, Holding
from data_pipelines.loading.worker_process import end_with_parent, shield_workers


class BatchIterator(grain.DatasetIterator):
    """An infinite iterator over batches, from any position.

    The position is the number of the next batch. Batches and positions do not depend on the number of threads and
    worker processes, so that a run can resume with other numbers.

    Args:
        batches: Batches by number.
        num_workers: Worker processes, which make batches in turn; 0: this process makes them.
        num_threads: Threads of each process that makes batches.
        prefetch: Batches made ahead of time, in all processes together.
        stall_seconds: A batch that takes longer is an error; 0: no limit.
        bad: The unreadable records, which are logged here.
        held: The records that workers are reading, for error messages.

    Attributes:
        stall_seconds: See above; may be changed between batches.
    """

    def __init__(
        self,
        batches: grain.MapDataset,
        *,
        num_workers: int,
        num_threads: int,
        prefetch: int,
        stall_seconds: float,
        bad: BadRecords,
        held: HeldRecords,
    ):
        super().__init__()
        self._batches = batches
        self._num_workers = num_workers
        self._prefetch = prefetch
        ahead = num_threads if num_workers else prefetch  # workers also have their own buffer
        self._read_options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=ahead)
        self.stall_seconds = stall_seconds
        self._bad = bad
        self._held = held
        self._position = 0
        self._source: _Source | None = None

    def __next__(self) -> Any:
        """The next batch.

        Raises:
            InputError: Too many records cannot be read, a worker process died, or no batch came in time. The
                message names the records that were being read.
        """
        self.start_prefetch()
        assert self._source is not None
        try:
            batch = self._source.next(self.stall_seconds or None)
        except TimeoutError:
            holdings = self._held.holdings()
            for process in {holding.process for holding in holdings} - {os.getpid()}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)  # a stuck worker ignores a normal shutdown
            raise InputError(self._stalled(holdings)) from None
        except RuntimeError as error:
            if "Worker process was terminated" not in str(error):  # Grain's message
                raise
            raise InputError(self._died(error)) from error
        finally:
            self._bad.log()
        self._position += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """The position: `{"next_index": N}` after N batches."""
        return {"next_index": self._position}

    def set_state(self, state: dict[str, int]) -> None:
        """Moves to a position. Reading starts with the next batch or `start_prefetch`."""
        self._stop()
        self._position = state["next_index"]

    def start_prefetch(self) -> None:
        """Starts to make batches ahead of time."""
        if self._closed:
            raise ValueError("the iterator is closed")
        if self._source is None:
            batches = self._batches[self._position :].to_iter_dataset(self._read_options)
            if self._num_workers:
                _parse_flags()
                buffer = max(1, self._prefetch // self._num_workers)
                workers = grain.MultiprocessingOptions(self._num_workers, buffer)
                batches = batches.mp_prefetch(workers, worker_init_fn=end_with_parent)
            self._source = _Source(iter(batches))
            self._end_source = weakref.finalize(self, self._source.close)

    def close(self) -> None:
        """Stops threads and processes. The iterator cannot be used any more."""
        self._closed = True
        self._stop()

    def _stop(self) -> None:
        if self._source is not None:
            self._end_source()
            self._source = None

    def _stalled(self, holdings: list[Holding]) -> str:
        held = _listed(holdings) or "no record was being read: the file system or the machine hangs"
        return (
            f"no batch came for {self.stall_seconds:g} s (config.data.stall_seconds); {held}; check the "
            "storage, or raise the limit"
        )

    def _died(self, error: RuntimeError) -> str:
        dead = [holding for holding in self._held.holdings() if not _is_alive(holding.process)]
        held = _listed(dead) or "it was reading no record"
        return (
            f"a data worker died: {str(error).split('. ')[0]}; {held}; it may have run out of memory: lower "
            "config.data.num_workers, num_threads or prefetch, or remove the record"
        )


class _Source:
    """Reads an iterator from its own thread, so that `next` can time out."""

    def __init__(self, iterator: grain.DatasetIterator):
        self._iterator = iterator
        self._requests: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        # Not a pool: at exit, Python waits for the threads of pools, even for one that hangs.
        self._thread = threading.Thread(target=self._serve, daemon=True, name="data-loader")
        self._thread.start()

    def next(self, timeout: float | None) -> Any:
        """The next element; raises what the iterator raises, or `TimeoutError`."""
        self._requests.put(True)
        try:
            element, error = self._results.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        if error is not None:
            raise error
        return element

    def close(self) -> None:
        self._requests.put(False)
        self._iterator.close()

    def _serve(self) -> None:
        shield_workers()
        while self._requests.get():
            try:
                self._results.put((next(self._iterator), None))
            except BaseException as error:  # raised again by `next`
                self._results.put((None, error))


def _listed(holdings: list[Holding]) -> str:
    return (
        "being read: "
        + ", ".join(
            f"{holding.record} (process {holding.process}, for {holding.seconds:.0f} s)" for holding in holdings[:8]
        )
        if holdings
        else ""
    )


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _parse_flags() -> None:
    """Marks absl's flags as parsed: Grain's workers read them, and only absl apps parse them."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
