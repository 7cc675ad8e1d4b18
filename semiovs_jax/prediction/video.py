"""The frames of a video, decoded by ffmpeg: pip install 'semiovs-jax[video]'."""

import contextlib
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.errors import InputError
from data_pipelines.images.checksums import ImageChecksum, read_ends
from data_pipelines.sources.records import File, UnreadableError
from semiovs_jax.evaluation.buckets import Size

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})

_HELD = 64  # frames that threads may ask for out of order


class Video:
    """A video whose frames are decoded in order, once where they are asked for nearly in order.

    Attributes:
      path: the file.
      size: (height, width) of all frames.
      checksum: changes with the file.
    """

    def __init__(self, path: Path, size: Size):
        self.path, self.size = path, size
        with File(path).open() as stream:
            self.checksum = read_ends(stream).checksum
        self._lock = threading.Lock()
        self._frames: Iterator[np.ndarray] | None = None
        self._next = 0
        self._held: OrderedDict[int, np.ndarray] = OrderedDict()

    def frame(self, number: int) -> np.ndarray:
        """Frame `number`, from 0: uint8 [H, W, 3].

        Raises:
          UnreadableError: the video ends before, or is damaged.
        """
        with self._lock:
            if number not in self._held:
                self._read_to(number)
            return self._held.pop(number)

    def _read_to(self, number: int) -> None:
        if self._frames is None or number < self._next:
            self._frames, self._next = _decoded(self.path), 0
        while self._next <= number:
            try:
                self._held[self._next] = next(self._frames)
            except StopIteration:
                raise UnreadableError(f"{self.path}: ends before frame {number}") from None
            except Exception as error:  # ffmpeg's messages have several types
                raise UnreadableError(f"{self.path}: frame {self._next} cannot be decoded ({error})") from error
            self._next += 1
            if len(self._held) > _HELD:
                self._held.popitem(last=False)


class Frame:
    """A frame of a video; see `sources.Picture`. Its id is its number with six digits, from 000000."""

    def __init__(self, video: Video, number: int):
        self._video, self._number = video, number
        self.id = f"{number:06d}"
        self.name = f"{video.path}: frame {number}"

    def size(self) -> Size:
        """(height, width)."""
        return self._video.size

    def pixels(self) -> np.ndarray:
        """uint8 [H, W, 3]; raises `UnreadableError`."""
        return self._video.frame(self._number)

    def checksum(self) -> ImageChecksum:
        """Changes with the video."""
        return self._video.checksum


def open_video(path: Path) -> list[Frame]:
    """The frames of a video.

    Raises:
      InputError: the file is no video that ffmpeg reads, or the extra `video` is not installed.
    """
    count_frames = _ffmpeg(path).count_frames_and_secs
    try:
        count, _ = count_frames(str(path))
        with contextlib.closing(_decoded(path)) as frames:
            height, width = next(frames).shape[:2]
    except (OSError, RuntimeError, ValueError, StopIteration) as error:
        raise InputError(f"{path}: cannot be read as a video ({error}); convert it to MP4 with ffmpeg") from error
    video = Video(path, (height, width))
    return [Frame(video, number) for number in range(count)]


def _decoded(path: Path) -> Any:
    """A generator of the frames, uint8 [H, W, 3], turned upright."""
    import imageio.v3 as iio

    return iio.imiter(path, plugin="FFMPEG")


def _ffmpeg(path: Path) -> Any:
    try:
        import imageio.v3  # noqa: F401
        import imageio_ffmpeg
    except ModuleNotFoundError as error:
        raise InputError(f"{path}: videos need {error.name}; run pip install 'semiovs-jax[video]'") from error
    # JAX warns of every fork. This one is safe: the child becomes ffmpeg at once.
    warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning, module="subprocess")
    return imageio_ffmpeg
