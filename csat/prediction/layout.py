"""Where the files of a prediction lie, and which of its slides are done.

    OUTPUT/slides/NAME/…        the files of a slide
    OUTPUT/parts/               what was said of tiles of slides that are not done: csat.prediction.parts
    OUTPUT/done/000007.json     written last: slide 7 is done; holds its counts

The number of a slide is its place in the manifest.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

from csat.prediction.parts import Parts
from csat.storage import files
from csat.storage.uris import base_name
from csat.words import printable

SLIDES, PARTS, DONE = "slides", "parts", "done"
LONGEST_NAME = 120  # characters: file systems take 255 bytes
NUM_READERS = 16  # marks that are read at a time


class Layout:
    """The folder of a prediction.

    Args:
        uri: Local path or URI.
    """

    def __init__(self, uri: str):
        self.uri = uri
        self.parts = Parts(files.join(uri, PARTS))

    def slide_folder(self, name: str) -> str:
        """URI of the folder of a slide of that name, see `slide_names`."""
        return files.join(self.uri, SLIDES, name)

    def mark_done(self, slide_index: int, record: Mapping[str, Any]) -> None:
        """The slide's files are all there: commit it. Then its parts are of no use."""
        data = (json.dumps(record) + "\n").encode()
        files.insist(lambda: files.write_bytes(self._mark(slide_index), data))
        self.parts.delete(slide_index)

    def done(self) -> set[int]:
        """Numbers of the slides that are done."""
        names = map(base_name, files.insist(lambda: files.list_dir(files.join(self.uri, DONE))))
        return {
            int(stem) for stem, dot, ending in (name.partition(".") for name in names) if ending == "json" and stem.isdigit()
        }

    def record(self, slide_index: int) -> dict[str, Any] | None:
        """What `mark_done` was given of a slide; None: it is not done."""
        uri = self._mark(slide_index)
        found = files.insist(lambda: files.read_bytes(uri) if files.exists(uri) else None)
        return None if found is None else json.loads(found)

    def records(self) -> dict[int, dict[str, Any]]:
        """Number → what `mark_done` was given, in order, of every slide that is done."""
        numbers = sorted(self.done())
        with ThreadPoolExecutor(NUM_READERS) as pool:
            return dict(zip(numbers, pool.map(self.record, numbers), strict=True))

    def _mark(self, slide_index: int) -> str:
        return files.join(self.uri, DONE, f"{slide_index:06d}.json")


def slide_names(slides: Sequence[str]) -> list[str]:
    """A folder's name for each slide: its file's name without the ending, with a few digits of its URI where another slide has
    the same (or one that differs by capitals alone)."""
    stems = [_stem(slide) for slide in slides]
    counts = Counter(stem.casefold() for stem in stems)
    return [
        stem if counts[stem.casefold()] == 1 else f"{stem}-{sha256(printable(slide).encode()).hexdigest()[:8]}"
        for stem, slide in zip(stems, slides, strict=True)
    ]


def _stem(slide: str) -> str:
    """What a file system and a URI take: without control characters, slashes, and what a pattern or a query would read."""
    stem = printable(base_name(slide)).rpartition(".")[0] or printable(base_name(slide))
    return re.sub(r"[^\w.() +=@,-]", "_", stem)[:LONGEST_NAME].strip(". ") or "slide"
