"""Dense answers of tiles → one map of the slide, on disk: memory holds a tile of it, whatever the slide's size.

A map is a grid of square cells over the full canvas from its upper left corner. A cell's value is the mean of the answer's
pixels in it, by the area that they share, so that nothing drifts where a cell is not a whole number of pixels; of the tiles
that cover its centre the one is taken whose own centre is nearest. That is the core of each tile, as for nuclei
(`csat.prediction.seams`): the margins, where a network sees least around a pixel, are used only where there is no neighbour.
The result does not depend on the order of the tiles.
"""

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from csat.prediction.slide_frame import Place, SlideFrame

NUDGE_PX = 1e-3  # half-open cores: a cell that lies as near to two tiles belongs to the right and lower one
SMALLEST_PX = 512  # a pyramid ends with the first level whose edges are no longer
STRIP = 512  # rows of a level that are in memory while the next one is made
UNSEEN = 0  # label of what no tile covers; class i of a mask is label i + 1


@dataclass(frozen=True)
class MapGrid:
    """The cells of a slide's map.

    Attributes:
        cell_x, cell_y: Edges of a cell, level-0 px.
        width, height: Of the map, cells; the last ones may reach beyond the slide.
    """

    frame: SlideFrame
    cell_x: float
    cell_y: float

    @property
    def width(self) -> int:
        return max(1, math.ceil(self.frame.width_px / self.cell_x - 1e-6))

    @property
    def height(self) -> int:
        return max(1, math.ceil(self.frame.height_px / self.cell_y - 1e-6))

    @property
    def mpp(self) -> tuple[float, float] | None:
        """um per cell across and down; None where the slide's resolution is not known."""
        return (self.cell_x * self.frame.mpp_x, self.cell_y * self.frame.mpp_y) if self.frame.mpp_x else None


class Cells(NamedTuple):
    """What one tile says of the cells whose centre it covers."""

    row: int  # of the first one in the map
    column: int
    values: np.ndarray  # uint8 [C, h, w], probability * 255 or labels


def grid_of_um(frame: SlideFrame, cell_um: float, *, unknown_px: float = 8.0) -> MapGrid:
    """Square cells of that many um; of `unknown_px` level-0 px where the slide's resolution is not known."""
    if not frame.mpp_x:
        return MapGrid(frame, unknown_px, unknown_px)
    return MapGrid(frame, cell_um / frame.mpp_x, cell_um / frame.mpp_y)


def grid_of_tiles(frame: SlideFrame, places: Sequence[Place]) -> MapGrid:
    """A cell for each tile, for what says one thing of a whole tile: as large as the usual step from one to the next."""
    edges = np.array(places, np.float64).reshape(-1, 4)
    return MapGrid(frame, _usual_step(edges[:, 0], edges[:, 2]), _usual_step(edges[:, 1], edges[:, 3]))


def cells_of(values: np.ndarray, place: Place, grid: MapGrid, *, labels: bool = False) -> Cells:
    """One tile's answer on the map's cells. Runs beside the network.

    Args:
        values: float `[C, n, m]`, probabilities; of an answer about the whole tile `[C]`.
        place: What it covers.
        grid: Of the slide's map.
        labels: Give the most probable class of each cell, + 1, as the only channel.
    """
    values = np.asarray(values, np.float32)
    values = values[:, None, None] if values.ndim == 1 else values
    pixel_x, pixel_y = place.pixel(values.shape[1:])
    columns = _covered(place.left, place.right, grid.cell_x, grid.width, grid.frame.width_px)
    rows = _covered(place.top, place.bottom, grid.cell_y, grid.height, grid.frame.height_px)
    across = _shares(columns * grid.cell_x - place.left, grid.cell_x, pixel_x, values.shape[2])
    down = _shares(rows * grid.cell_y - place.top, grid.cell_y, pixel_y, values.shape[1])
    means = down @ values @ across.T
    said = means.argmax(0)[None] + 1.0 if labels else means * 255.0
    first = [int(each[0]) if len(each) else 0 for each in (rows, columns)]
    return Cells(*first, np.clip(np.round(said), 0, 255).astype(np.uint8))


class SlideMap:
    """A map that is gathered on the local disk. Use it as a context manager: its files go when it ends.

    Attributes:
        levels: The finest first: shape `(C, height, width)` of each. Only one until `build_pyramid`.
    """

    def __init__(self, grid: MapGrid, num_channels: int, *, labels: bool = False):
        """
        Args:
            grid: Its cells.
            num_channels: 1 with `labels`.
            labels: Values are labels, of which no mean may be taken.
        """
        self.grid, self.labels = grid, labels
        self.levels = [(num_channels, grid.height, grid.width)]
        self._folder = tempfile.TemporaryDirectory(prefix="csat-map-")
        self._make("near", np.float32, self.levels[0][1:])
        self._make("0", np.uint8, self.levels[0])

    def __enter__(self) -> "SlideMap":
        return self

    def __exit__(self, *_) -> None:
        self._folder.cleanup()

    def add(self, cells: Cells, place: Place) -> None:
        """Take a tile's cells, where its centre is nearer than that of the tile that was there.

        Args:
            cells: Of `cells_of`.
            place: What the answer covers.
        """
        _, height, width = cells.values.shape
        if not height or not width:
            return
        frame, grid = self.grid.frame, self.grid
        x = _centres(cells.column + np.arange(width), grid.cell_x, frame.width_px) - (place.left + place.right) / 2
        y = _centres(cells.row + np.arange(height), grid.cell_y, frame.height_px) - (place.top + place.bottom) / 2
        here = (1 / (1 + (x + NUDGE_PX) ** 2 + ((y + NUDGE_PX) ** 2)[:, None])).astype(np.float32)
        where = np.s_[cells.row : cells.row + height, cells.column : cells.column + width]
        near, values = self._open("near", np.float32, self.levels[0][1:]), self._open("0", np.uint8, self.levels[0])
        nearer = here > near[where]
        near[where] = np.where(nearer, here, near[where])
        values[:, *where] = np.where(nearer, cells.values, values[:, *where])

    def build_pyramid(self) -> None:
        """Make the coarser levels, each half of the one before."""
        while max(self.levels[-1][1:]) > SMALLEST_PX:
            channels, height, width = self.levels[-1]
            finer = self._open(str(len(self.levels) - 1), np.uint8, self.levels[-1], "r")
            shape = channels, -(-height // 2), -(-width // 2)
            self._make(str(len(self.levels)), np.uint8, shape)
            for top in range(0, height, STRIP):
                coarser = self._open(str(len(self.levels)), np.uint8, shape)
                for channel in range(channels):
                    part = _halved(np.array(finer[channel, top : top + STRIP]), labels=self.labels)
                    coarser[channel, top // 2 : top // 2 + len(part)] = part
                del coarser  # its pages leave this process' memory
                finer = self._open(str(len(self.levels) - 1), np.uint8, self.levels[-1], "r")
            self.levels.append(shape)

    def tiles(self, level: int, tile_px: int) -> Iterator[np.ndarray]:
        """Square tiles of a level, channel after channel, row by row; zeros beyond its edges. uint8 `[tile_px, tile_px]`."""
        channels, height, width = self.levels[level]
        for channel in range(channels):
            for top in range(0, height, tile_px):
                strip = self._open(str(level), np.uint8, self.levels[level], "r")[channel, top : top + tile_px]
                for left in range(0, width, tile_px):
                    tile = np.zeros((tile_px, tile_px), np.uint8)
                    part = strip[:, left : left + tile_px]
                    tile[: part.shape[0], : part.shape[1]] = part
                    yield tile

    def read(self, level: int) -> np.ndarray:
        """A whole level: uint8 `[C, height, width]`. For the coarse ones."""
        return np.array(self._open(str(level), np.uint8, self.levels[level], "r"))

    def _make(self, name: str, dtype: type, shape: tuple[int, ...]) -> None:
        """A file of zeros; it takes room on the disk where it is written to."""
        with open(Path(self._folder.name) / name, "wb") as file:
            file.truncate(math.prod(shape) * np.dtype(dtype).itemsize)

    def _open(self, name: str, dtype: type, shape: tuple[int, ...], mode: str = "r+") -> np.memmap:
        return np.memmap(Path(self._folder.name) / name, dtype, mode, shape=shape)


def _usual_step(first_px: np.ndarray, last_px: np.ndarray) -> float:
    """The most frequent distance of neighbouring tiles along an axis; of a single one its edge."""
    steps, counts = np.unique(np.diff(np.unique(first_px)), return_counts=True)
    return float(steps[counts.argmax()]) if len(steps) else float((last_px - first_px).max(initial=1.0))


def _covered(first_px: float, last_px: float, cell: float, count: int, edge_px: int) -> np.ndarray:
    """int `[n]`: the cells along an axis whose centre is in a range."""
    low, high = max(0, math.floor(first_px / cell) - 1), min(count, math.ceil(last_px / cell) + 1)
    numbers = np.arange(low, max(low, high))
    centres = _centres(numbers, cell, edge_px)
    return numbers[(centres >= first_px) & (centres < last_px)]


def _centres(numbers: np.ndarray, cell: float, edge_px: int) -> np.ndarray:
    """float `[n]`: level-0 px along an axis; of a last cell whose centre lies beyond the slide, the slide's edge."""
    return np.minimum((numbers + 0.5) * cell, edge_px - NUDGE_PX)


def _shares(start_px: np.ndarray, cell: float, pixel: float, count: int) -> np.ndarray:
    """float32 `[cells, count]`: which part of a cell's mean each pixel has. `start_px`: of the cells, from the first pixel."""
    edges = np.arange(count) * pixel
    shared = np.minimum(start_px[:, None] + cell, edges + pixel) - np.maximum(start_px[:, None], edges)
    shared = np.maximum(shared, 0)
    return (shared / shared.sum(1, keepdims=True).clip(1e-12)).astype(np.float32)


def _halved(part: np.ndarray, *, labels: bool) -> np.ndarray:
    """uint8 at half the size; of labels the most frequent of four, of probabilities the mean."""
    part = np.pad(part, ((0, part.shape[0] % 2), (0, part.shape[1] % 2)), mode="edge")
    if not labels:
        return cv2.resize(part, (part.shape[1] // 2, part.shape[0] // 2), interpolation=cv2.INTER_AREA)
    four = np.sort(np.stack([part[::2, ::2], part[::2, 1::2], part[1::2, ::2], part[1::2, 1::2]]), 0)
    return np.where(four[1] == four[2], four[1], np.where(four[2] == four[3], four[2], four[0]))
