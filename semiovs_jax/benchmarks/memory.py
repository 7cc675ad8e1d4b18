"""Peak memory of a process."""

import contextlib
import resource
import sys
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_host_bytes() -> int:
    """The most memory that this process has had resident so far, or since `reset_peak`, in bytes.

    On Linux it is read from /proc: the peak of `getrusage` starts with that of the process that started this one.
    """
    try:
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass  # another system than Linux
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def reset_peak() -> None:
    """Lowers the peak to what is resident now; does nothing but on Linux."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5", encoding="ascii")
