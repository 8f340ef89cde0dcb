"""The name of this process among those of a cluster: figures say how many shared a stage's work."""

import os
import socket
from functools import cache


@cache
def who() -> str:
    """Host and process."""
    return f"{socket.gethostname()}:{os.getpid()}"
