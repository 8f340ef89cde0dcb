"""What status.json says of a verb's work: running, then finished, or failed with the reason."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from csat.errors import StorageError
from csat.runs.folder import RunFolder
from workflows.shell import interruption

logger = logging.getLogger(__name__)

FAILED = "failed"


@contextmanager
def under_way(folder: RunFolder) -> Iterator[None]:
    """The work of a verb. An error is written down and goes on; an interruption has its own words, see `kept`."""
    folder.set_status("running")
    try:
        yield
    except Exception as error:
        if not interruption.is_interrupted():
            _write_down(folder, error)
        raise
    folder.set_status("finished")


def _write_down(folder: RunFolder, error: Exception) -> None:
    from workflows.shell.failures import reason  # which loads Ray's parts

    try:
        folder.set_status(FAILED, error=reason(error), kind=type(error).__name__)
    except StorageError as fault:  # most likely what the work ended with, too: that is told
        logger.warning("status.json still says that it is running: %s", fault)
