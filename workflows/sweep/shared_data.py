"""Decoded data under a name, for all trials of a data set: in the object store while they are needed, and no longer.

What a trial's settings hold is pickled into Ray Tune's own notes, and a reference that was pickled is never let go. So trials
get a name, and ask the actor of that name.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray


@ray.remote(num_cpus=0)
class _Holder:
    """Holds a reference; it never looks at what it refers to."""

    def __init__(self, boxed: list[ray.ObjectRef]):
        self.boxed = boxed  # in a list: an argument that is a reference itself would be fetched

    def get(self) -> list[ray.ObjectRef]:
        return self.boxed


@contextmanager
def share(name: str, value: Any) -> Iterator[None]:
    """Let every process of this job ask for `value` by its name until the context ends."""
    boxed = [ray.put(value)]
    del value
    holder = _Holder.options(name=name).remote(boxed)
    ray.get(holder.get.remote())
    boxed.clear()
    try:
        yield
    finally:
        ray.kill(holder)


def shared_data(name: str) -> Any:
    """The value of that name. Raises ValueError where there is none."""
    (reference,) = ray.get(ray.get_actor(name).get.remote())
    return ray.get(reference)
