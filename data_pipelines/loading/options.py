"""How training records are read and shown: keys of `config.data`."""

from typing import Any, NamedTuple


class Options(NamedTuple):
    """How training records are read and shown: keys of `config.data`, and fields of the same names.

    Attributes:
        crop_size: Side of the square crops, in pixels.
        scale_range: Least and largest factor of the long side, before the crop.
        scale_short_side: Where positive, the factors are of this side instead, in pixels.
        scaled_decode: Whether JPEGs are decoded smaller where the drawn size is at most half (see `decode_image`).
        max_bad_records: Unreadable records that are passed over before a run gives up.
        num_workers: Processes that build batches; 0: this one.
        num_threads: Threads of each of them.
        prefetch: Batches built ahead.
        stall_seconds: A batch that takes longer ends the run; 0: never.
    """

    crop_size: int
    scale_range: tuple[float, float]
    scale_short_side: int
    scaled_decode: bool
    max_bad_records: int
    num_workers: int
    num_threads: int
    prefetch: int
    stall_seconds: float

    @classmethod
    def read(cls, data_config: Any) -> "Options":
        """The options of a config's `data` section, whose values must be in their ranges."""
        return cls(**{name: data_config[name] for name in cls._fields})
