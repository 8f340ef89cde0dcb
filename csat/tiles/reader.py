"""Rows of the manifest in, rows with pixels out. A tile that cannot be read is a row with the reason, never an error."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from csat.columns import FILTERED, OK, QUARANTINED, READ_S, REASON, STATUS, STUDENT_TILE, TILE, of_arrays
from csat.errors import SlideError
from csat.slides.crashes import CrashLog
from csat.slides.pyramid import read_shrunk
from csat.slides.reader import SlideReader, open_slide, read_tile
from csat.storage.node_cache import SlideCache

T = TypeVar("T")

MAX_HELD_BYTES = 512 * 2**20  # decoded images and parquet row groups that open readers may hold together
MAX_FAILURES = 1024  # slides that could not be opened and are remembered, so that each of their tiles costs nothing
# A pixel is background where it is bright and without colour: glass, not eosin. Out of 255.
BACKGROUND_MIN_VALUE = 200
BACKGROUND_MAX_CHROMA = 20


class TileReader:
    """Reads tiles, keeping the slides that it used last open.

    Picklable: it travels without its open slides. Of a slide in a bucket only the one that is being read is pinned in the
    node's cache; the others may be evicted, are noticed by the end of the batch, and are reopened when next needed.
    """

    def __init__(
        self,
        *,
        tile_px: int,
        cache: SlideCache | None = None,
        max_open_slides: int = 16,
        max_background: float | None = None,
        crashes: CrashLog | None = None,
        whole: bool = False,
        student_factor: int | None = None,
    ):
        """
        Args:
            tile_px: Edge of every tile that comes out; of a whole image, what its edges are made multiples of.
            cache: Of slides in buckets.
            max_open_slides: Readers kept open. Best no fewer than a shard of the manifest has slides: its tiles are mixed.
            max_background: Tiles with a larger share of near-white pixels are filtered; None: none is.
            whole: Each row is an image of its own size (`width_px`, `height_px` of the manifest), which is padded with white,
                to the right and below, to multiples of `tile_px`.
            student_factor: Read each tile at 1 / student_factor of its resolution too, from the lower pyramid level where
                there is one; divides `tile_px`. None: the student's pixels are made from the tile's later.
            crashes: Remembers slides that crash the process, for the one that takes its place; None: nothing does.
        """
        self.tile_px = tile_px
        self.cache = cache
        self.max_open_slides = max_open_slides
        self.max_background = max_background
        self.crashes = crashes
        self.whole = whole
        self.student_factor = student_factor
        self._readers: OrderedDict[str, SlideReader] = OrderedDict()
        self._failures: OrderedDict[str, SlideError] = OrderedDict()

    def __call__(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Add pixels to rows.

        Args:
            columns: Of the manifest: slide, kind, x_px, y_px, level, read_px, aspect, row, for whole images width_px and
                height_px; others pass through.

        Returns:
            The same columns in the same order, and TILE uint8 `[B, tile_px, tile_px, 3]` (zeros where it is not OK), STATUS,
            REASON ("code: message", "" where OK) and READ_S (opening a slide counts for the first tile that needs it). Whole
            images come as object `[B]` of `[height, width, 3]`, `[tile_px, tile_px, 3]` where not OK. With `student_factor`
            also STUDENT_TILE, the same but for its size.

        Raises:
            StorageError: the fault is not the slide's: the node's disk is full, the store is out of reach.
        """
        num_rows = len(columns["slide"])
        tiles = self._black(num_rows, 1)
        student_tiles = None if self.student_factor is None else self._black(num_rows, self.student_factor)
        status = np.full(num_rows, OK, np.uint8)
        reasons = np.full(num_rows, "", object)
        seconds = np.zeros(num_rows, np.float32)
        current = None
        for index in _by_place(columns):
            start = time.perf_counter()
            slide = str(columns["slide"][index])
            if slide != current:
                self._let_go(current)
                current = slide
            try:
                if self.crashes is not None:
                    self.crashes.enter(slide)
                where = {name: int(columns[name][index]) for name in ("x_px", "y_px", "level", "read_px", "row")}
                where["aspect"] = float(columns["aspect"][index])
                size = (int(columns["width_px"][index]), int(columns["height_px"][index])) if self.whole else self.tile_px
                reader = self._reader(slide, str(columns["kind"][index]))
                tile = read_tile(reader, **where, tile_px=size, mirrored=True)
                background = 0.0 if self.max_background is None else background_fraction(tile)
                if self.max_background is not None and background > self.max_background:
                    status[index], reasons[index] = FILTERED, f"background: {background:.3f} of the tile is near-white"
                else:
                    if student_tiles is not None:
                        student_tile = read_shrunk(reader, tile, **where, factor=self.student_factor)
                        student_tiles[index] = self._padded(student_tile, self.tile_px // self.student_factor)
                    tiles[index] = self._padded(tile, self.tile_px)
            except SlideError as error:
                status[index], reasons[index] = QUARANTINED, f"{error.reason}: {error}"
            seconds[index] = time.perf_counter() - start
        self._let_go(current)
        if self.crashes is not None:
            self.crashes.leave()
        for slide in [slide for slide, reader in self._readers.items() if _lease(reader) and _lease(reader).is_evicted]:
            self._readers.pop(slide).close()  # an evicted file takes room until it is closed
        more = {} if student_tiles is None else {STUDENT_TILE: student_tiles}
        return {**columns, TILE: tiles, **more, STATUS: status, REASON: reasons, READ_S: seconds}

    def ask(self, slide: str, kind: str, question: Callable[[SlideReader], T]) -> T:
        """What is to be known of a slide besides its pixels; it is opened, where it is not open from reading them.

        Raises:
            SlideError: it cannot be opened.
        """
        try:
            return question(self._reader(slide, kind))
        finally:
            self._let_go(slide)

    def close(self) -> None:
        """Close every slide. The reader may be used again."""
        while self._readers:
            self._readers.popitem()[1].close()

    def _black(self, num_rows: int, factor: int) -> np.ndarray:
        """The column before anything is read."""
        tiles = np.zeros((num_rows, self.tile_px // factor, self.tile_px // factor, 3), np.uint8)
        return of_arrays(list(tiles)) if self.whole else tiles

    def _padded(self, tile: np.ndarray, step_px: int) -> np.ndarray:
        """Glass to the right and below, to multiples of `step_px`; nothing where the edges are."""
        below, beside = -tile.shape[0] % step_px, -tile.shape[1] % step_px
        return np.pad(tile, ((0, below), (0, beside), (0, 0)), constant_values=255) if below or beside else tile

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_readers": OrderedDict(), "_failures": OrderedDict()}

    def _reader(self, slide: str, kind: str) -> SlideReader:
        """The slide's reader, open and pinned. Raises SlideError, the same one again for a slide that failed before."""
        if slide in self._failures:
            self._failures.move_to_end(slide)
            raise self._failures[slide]
        reader = self._readers.get(slide)
        if reader is not None and _lease(reader) and not _lease(reader).resume():
            self._readers.pop(slide).close()
            reader = None
        if reader is None:
            try:
                reader = open_slide(slide, kind, cache=self.cache)
            except SlideError as error:
                self._failures[slide] = error.with_traceback(None)
                if len(self._failures) > MAX_FAILURES:
                    self._failures.popitem(last=False)
                raise
            self._readers[slide] = reader
        self._readers.move_to_end(slide)
        self._close_oldest()
        return reader

    def _close_oldest(self) -> None:
        def is_over() -> bool:
            held_bytes = sum(reader.num_bytes for reader in self._readers.values())
            return len(self._readers) > self.max_open_slides or held_bytes > MAX_HELD_BYTES

        while len(self._readers) > 1 and is_over():
            self._readers.popitem(last=False)[1].close()

    def _let_go(self, slide: str | None) -> None:
        """Unpin a slide, so that waiting for another one's download never blocks this node's cache."""
        reader = self._readers.get(slide)
        if reader is not None and _lease(reader):
            _lease(reader).pause()


def background_fraction(tile: np.ndarray) -> float:
    """Share of near-white pixels.

    Args:
        tile: uint8 `[H, W, 3]`, RGB.
    """
    low, high = tile.min(axis=2), tile.max(axis=2)
    return float(np.mean((low >= BACKGROUND_MIN_VALUE) & (high - low <= BACKGROUND_MAX_CHROMA)))


def _by_place(columns: dict[str, np.ndarray]) -> np.ndarray:
    """Indices of the rows, those of one slide together and neighbours after each other: a slide is opened once a batch."""
    _, slide = np.unique(np.asarray(columns["slide"], dtype=str), return_inverse=True)
    return np.lexsort([columns["x_px"], columns["y_px"], columns["level"], columns["row"], slide])


def _lease(reader: SlideReader):
    return getattr(reader, "lease", None)
