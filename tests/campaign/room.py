"""The folder in which commands run: an empty file system of its own, with its own shared memory, where that is allowed.

Jobs run trials beside each other under the same paths, because a mount is seen by its own job alone.
"""

import os
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

_ISOLATED = "SEMIOVS_CAMPAIGN_ISOLATED"
_SHARED_MEMORY = Path("/dev/shm")
_MOUNT = "mount -t tmpfs -o size=512m tmpfs /dev/shm"


def isolation() -> list[str]:
    """The start of a command line that gives a command its own mounts; empty where the system forbids it."""
    for flags in ("-m", "-rm"):
        prefix = ["unshare", flags, "sh", "-c", f'{_MOUNT} && exec env {_ISOLATED}=1 "$@"', "sh"]
        try:
            if subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
                return prefix
        except FileNotFoundError:
            break
    return []


def is_isolated() -> bool:
    """Whether this process was started by a command line of `isolation`."""
    return _ISOLATED in os.environ


def shared_memory() -> list[str]:
    """Names of the shared memory segments; none where other programs have some, too."""
    return sorted(map(str, _SHARED_MEMORY.iterdir())) if is_isolated() else []


class Room:
    """A folder that holds a copy of another one, at the same path for every job.

    Attributes:
        folder: The folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def fill(self, source: Path, kilobytes: int | None = None) -> None:
        """Replaces the contents with a copy of `source`; `kilobytes` is the size of the disk where it can be set."""
        self.clear()
        self.folder.mkdir(parents=True, exist_ok=True)
        if is_isolated():
            _mount(f"size={kilobytes or 2**20}k", "tmpfs", str(self.folder))
        shutil.copytree(source, self.folder, dirs_exist_ok=True)

    def make_room(self) -> None:
        """Ends the limit of the disk."""
        if is_isolated():
            _mount(f"remount,size={2**20}k", str(self.folder))

    def clear(self) -> None:
        """Removes the contents."""
        if not is_isolated():
            shutil.rmtree(self.folder, ignore_errors=True)
        elif self.folder.is_mount():  # the folder itself stays: to remove it would end the mounts of other jobs
            subprocess.run(["umount", "-l", str(self.folder)], check=True)


def file_limit(kilobytes: int) -> Callable[[], None] | None:
    """Sets the size of the largest file that a process can write, where the size of the disk cannot be set."""
    if is_isolated():
        return None
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, kilobytes * 1024))


def used_kilobytes(folder: Path) -> int:
    """What the files below a folder take on a disk of pages of 4 kB."""
    return sum(4 * -(-path.lstat().st_size // 4096) for path in folder.rglob("*"))


def _mount(options: str, *arguments: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, *arguments], check=True)
