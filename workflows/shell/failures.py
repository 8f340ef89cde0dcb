"""Why a run failed, in one sentence that names our settings where Ray's own message advises its own."""

import re
from collections.abc import Iterator

from ray.data.exceptions import ExecutionTimeoutError

from csat.words import last_line, some

_AT_WORK = re.compile(r"^\s*- (?P<stage>.+): (?P<count>[1-9]\d*) active task", re.MULTILINE)
_IN_A_STAGE = "UserCodeException: UDF failed to process a data block"  # Ray Data's word for whatever a stage of ours raised
_CAUSE = "The above exception was the direct cause of the following exception:"  # Python's, between what was raised and that
_OURS = re.compile(r"^csat\.errors\.\w+: ")
_CALLED = re.compile(r"\((\w+)\)")  # the class or function of ours, in Ray's name of a stage: MapBatches(TeacherStage)


def reason(error: BaseException) -> str:
    """What went wrong: of a stream that stood still what it waited for and what to do, else the error's own last line."""
    stalled = next((each for each in _all_of(error) if isinstance(each, ExecutionTimeoutError)), None)
    if stalled is not None:
        return _told(stalled)
    said = last_line(error)
    if _IN_A_STAGE in said:
        said = last_line(RuntimeError(str(error).rpartition(_CAUSE)[0] or said))
    return _OURS.sub("", said)


def _all_of(error: BaseException) -> Iterator[BaseException]:
    """The error, those of the workers that it tells of, and what led to each."""
    waiting, seen = [error], set()
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [each.__cause__, getattr(each, "cause", None), *getattr(each, "worker_failures", {}).values()]


def _told(stalled: ExecutionTimeoutError) -> str:
    busy = {}
    for found in _AT_WORK.finditer(str(stalled)):
        busy["->".join(_CALLED.findall(found["stage"])) or found["stage"]] = int(found["count"])
    waited = some(f"{name} ({count} at work)" for name, count in busy.items()) if busy else "a free CPU or GPU"
    return (
        f"the stream made no progress for as long as ray.stall_timeout_s allows; it waited for {waited}. Raise "
        "ray.stall_timeout_s if that may take so long; else look for the tile that it does not get over, or lower "
        "pool.batch_size"
    )
