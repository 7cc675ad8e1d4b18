"""A port of this machine that nothing listens on."""

import socket


def free_port() -> int:
    """A port that was free a moment ago, for a server of a test."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]
