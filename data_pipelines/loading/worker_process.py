"""Worker processes of the loader: signals do not reach them, and they end with the process that started them."""

import multiprocessing
import os
import signal
import threading
from multiprocessing import resource_tracker

from data_pipelines.signals import STOP_SIGNALS


def shield_workers() -> None:
    """Blocks SIGINT and SIGTERM in this thread, and so in the threads and processes that it starts.

    A terminal and most schedulers send a signal to the workers, too. The training process ends its workers itself,
    after it has saved a checkpoint.
    """
    resource_tracker.ensure_running()  # Python unblocks the signals in the thread that starts the tracker
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def end_with_parent(*worker: int) -> None:
    """Ends this worker as soon as the process that started it has ended, however that was.

    The shared memory of the workers is freed then by Python's resource tracker, which waits for the last of them. The
    kernel's parent-death signal would not do: it is sent when the thread ends that started the worker.

    Args:
        *worker: Index of the worker, and number of workers; unused.
    """
    del worker
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
