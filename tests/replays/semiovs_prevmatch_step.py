"""Whole training iterations of SemiOVS on PrevMatch: UniMatch's, with snapshots that label, too."""

from tests.replays.semiovs_unimatch_step import replay

__all__ = ["replay"]
