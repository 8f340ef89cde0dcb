"""What was said of tiles, kept until the files of their slide are written: a *part* for every few tiles.

    parts/000007/000000000128-000000000160.arrow    of slide 7: tiles 128 to 159 of the manifest

A part is one object of a few small tables, each with a column POSITION. It is written whole or not at all, under a name that
follows from its tiles: whoever answers them again, after a kill, writes the same part again, and a rerun knows from the names
alone what is answered. Parts that overlap (tiles that came in other batches the second time) are read as if they did not.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from csat.columns import POSITION
from csat.errors import StorageError
from csat.runs.plan import Intervals
from csat.storage import files

SUFFIX = ".arrow"
AHEAD = 8  # parts that are fetched while one is read
_TABLE = b"table"  # in a schema's metadata: which of the tables it is

Tables = dict[str, pa.Table]


class Parts:
    """The parts of one run.

    Args:
        uri: Their folder, local or in a bucket.
    """

    def __init__(self, uri: str):
        self.uri = uri

    def write(self, slide_index: int, tables: Mapping[str, pa.Table], *, positions: np.ndarray) -> int:
        """Write what was said of some tiles of a slide that follow each other.

        Args:
            slide_index: Number of the slide.
            tables: Name → table with a column POSITION, sorted by it.
            positions: Of the tiles, int64 `[n]`, ascending without gaps; also those that no table has a row of.

        Returns:
            Bytes written.

        Raises:
            StorageError: the disk is full, the store is out of reach.
        """
        first, stop = int(positions[0]), int(positions[-1]) + 1
        assert stop - first == len(positions), positions
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        for name, table in tables.items():
            schema = table.schema.with_metadata({_TABLE: name.encode()})
            with pa.ipc.new_stream(sink, schema, options=options) as stream:
                stream.write_table(table.combine_chunks().cast(schema))
        data = sink.getvalue().to_pybytes()
        files.insist(
            lambda: files.write_bytes(files.join(self._folder(slide_index), f"{first:012d}-{stop:012d}{SUFFIX}"), data)
        )
        return len(data)

    def done(self) -> dict[int, Intervals]:
        """Slide → positions of its tiles that are answered, by the names of all parts."""
        found: dict[int, list[tuple[int, int]]] = {}
        for uri in files.insist(lambda: files.list_files(self.uri)):
            if (place := _place(uri)) is not None:
                found.setdefault(place[0], []).append(place[1:])
        return {slide: Intervals(pairs) for slide, pairs in found.items()}

    def read(self, slide_index: int, *, first: int, stop: int) -> Iterator[Tables]:
        """The tables of a slide, part after part, every tile once and in order. A few parts are in memory at a time.

        Args:
            first, stop: Positions of the slide's tiles.

        Raises:
            StorageError: a part is missing or damaged.
        """
        uris = [uri for uri in files.insist(lambda: files.list_dir(self._folder(slide_index))) if _place(uri) is not None]
        expected = first
        with ThreadPoolExecutor(AHEAD) as pool:
            waiting = iter(sorted(uris))
            ahead = [pool.submit(_read, uri) for uri in islice(waiting, AHEAD)]
            for uri in sorted(uris):
                tables = ahead.pop(0).result()
                ahead += [pool.submit(_read, later) for later in islice(waiting, 1)]
                _, start, end = _place(uri)
                if end <= expected:
                    continue
                if start > expected:
                    raise StorageError(
                        f"{self.uri}: what was said of the tiles {expected} to {start - 1} is missing: run again"
                    )
                yield {name: table.filter(pc.greater_equal(table[POSITION], expected)) for name, table in tables.items()}
                expected = end
        if expected < stop:
            raise StorageError(f"{self.uri}: what was said of the tiles {expected} to {stop - 1} is missing: run again")

    def delete(self, slide_index: int) -> None:
        """Forget a slide whose files are written."""
        files.insist(lambda: files.delete(self._folder(slide_index)))

    def _folder(self, slide_index: int) -> str:
        return files.join(self.uri, f"{slide_index:06d}")


def _read(uri: str) -> Tables:
    data = pa.BufferReader(files.insist(lambda: files.read_bytes(uri)))
    tables: Tables = {}
    try:
        while data.tell() < data.size():
            table = pa.ipc.open_stream(data).read_all()
            tables[table.schema.metadata[_TABLE].decode()] = table
    except (pa.ArrowInvalid, OSError, TypeError, KeyError) as error:
        raise StorageError(
            f"{uri} is damaged ({error}): delete it and run again, its tiles are then answered again"
        ) from error
    return tables


def _place(uri: str) -> tuple[int, int, int] | None:
    """(slide, first, stop) by the name of a part; None: it is none."""
    *_, slide, name = uri.split("/")
    first, dash, stop = name.removesuffix(SUFFIX).partition("-")
    is_part = name.endswith(SUFFIX) and dash and slide.isdigit() and first.isdigit() and stop.isdigit()
    return (int(slide), int(first), int(stop)) if is_part else None
